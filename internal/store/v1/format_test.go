// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
)

// goldenID is the checkpoint in testdata: version 1 as it was first written.
// It must stay readable for ever.
const goldenID = "cp-601de001"

func goldenCapture() testCapture {
	return newCapture(rand.New(rand.NewPCG(1, 1)), 300, 200, blockSize+page)
}

func TestGoldenVersion1(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("testdata", "v1", goldenID)
	c := goldenCapture()
	im, err := OpenImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := im.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := im.Manifest(); m.Version != 1 || m.Sandbox != "sb-00000001" || m.Shape.PidsMax != 100 {
		t.Errorf("manifest %+v", m)
	}
	for _, name := range []string{FileState, FileMeta, FilePages} {
		got := make([]byte, im.File(name).Size())
		if _, err := im.File(name).ReadAt(got, 0); err != nil || !bytes.Equal(got, c.file(name)) {
			t.Errorf("%s has other bytes (%v)", name, err)
		}
	}
}

// What is written is what docs/format.md says, for a reader that knows
// nothing else.
func TestSecondReader(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	c := newCapture(seeded(t), blockSize-1, 0, 2*blockSize+page)
	put(t, d, "cp-1", c)
	for _, tt := range []struct {
		dir string
		c   testCapture
	}{{d.Path("cp-1"), c}, {filepath.Join("testdata", "v1", goldenID), goldenCapture()}} {
		files, ranges, err := secondReader(tt.dir)
		if err != nil {
			t.Fatalf("%s: %v", tt.dir, err)
		}
		for name, got := range files {
			if !bytes.Equal(got, tt.c.file(name)) {
				t.Errorf("%s: %s has other bytes", tt.dir, name)
			}
		}
		if len(files) != 3 || len(ranges) != len(tt.c.ranges) {
			t.Fatalf("%s: %d files, %d ranges", tt.dir, len(files), len(ranges))
		}
		for i, r := range tt.c.ranges {
			if ranges[i] != [3]uint64{uint64(r.Source), r.Offset, r.Length} {
				t.Errorf("%s: range %d is %v, want %v", tt.dir, i, ranges[i], r)
			}
		}
	}
}

// secondReader is docs/format.md put into code once more: it shares nothing
// with the package but the hash function.
func secondReader(dir string) (files map[string][]byte, ranges [][3]uint64, err error) {
	read := func(name string) []byte {
		b, e := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = e
		}
		return b
	}
	hash := func(b []byte) string { s := blake3.Sum256(b); return hex.EncodeToString(s[:]) }
	text := string(read("manifest"))
	cut := len(text) - len("\nblake3:\n") - 64
	if err != nil || cut < 0 || text[cut:] != "\nblake3:"+hash([]byte(text[:cut]))+"\n" {
		return nil, nil, fmt.Errorf("seal of %.40q: %w", text, err)
	}
	type table struct {
		Size   int
		Blake3 string
	}
	var m struct {
		Format       string
		Version      int
		BlockSize    int
		Files        []struct{ Name string }
		Sums, Ranges table
	}
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&m); err != nil || m.Format != "opencomputer-checkpoint" || m.Version != 1 {
		return nil, nil, fmt.Errorf("manifest %+v: %w", m, err)
	}
	sums, ids := read("sums"), read("ranges")
	if hash(sums) != m.Sums.Blake3 || hash(ids) != m.Ranges.Blake3 || string(sums[:8]) != "OCSUMS1\n" || string(ids[:8]) != "OCRNGS1\n" {
		return nil, nil, fmt.Errorf("tables: %w", err)
	}
	files = map[string][]byte{}
	sums = sums[8:]
	for _, f := range m.Files {
		b := read(f.Name)
		files[f.Name] = b
		for ; len(b) > 0; b, sums = b[min(m.BlockSize, len(b)):], sums[36:] {
			block := b[:min(m.BlockSize, len(b))]
			cheap := crc32.Checksum(block, crc32.MakeTable(0x82f63b78))
			if hash(block) != hex.EncodeToString(sums[:32]) || cheap != binary.LittleEndian.Uint32(sums[32:36]) {
				return nil, nil, fmt.Errorf("a block of %s", f.Name)
			}
		}
	}
	for ids = ids[8:]; len(ids) > 0; ids = ids[20:] {
		ranges = append(ranges, [3]uint64{uint64(binary.LittleEndian.Uint32(ids)), binary.LittleEndian.Uint64(ids[4:]), binary.LittleEndian.Uint64(ids[12:])})
	}
	return files, ranges, err
}
