// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// The file in testdata is of version 1 as it was first written. It must stay
// readable for ever. OC_TEST_GOLDEN=1 writes a missing one.
func TestGoldenVersion1(t *testing.T) {
	t.Parallel()
	path := filepath.Join("testdata", "v1.occheckpoint")
	c := small()
	if os.Getenv("OC_TEST_GOLDEN") != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(packed(t, c))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Read(t.Context(), bytes.NewReader(b), t.TempDir(), Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.check(t, r)
}

// What is written is what docs/portable.md says, for a reader that knows
// nothing else.
func TestSecondReader(t *testing.T) {
	t.Parallel()
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.occheckpoint"))
	if err != nil {
		t.Fatal(err)
	}
	large := newContents(seeded(t), 10, 1<<20, 3<<20, 0, 5<<20)
	for _, tt := range []struct {
		file []byte
		c    contents
	}{{golden, small()}, {packed(t, large), large}} {
		parts, err := secondReader(tt.file)
		if err != nil {
			t.Fatal(err)
		}
		table, ranges, files := parts[0], parts[1], parts[2:]
		n := binary.LittleEndian.Uint32(table)
		if !bytes.Equal(table[4:4+n], tt.c.manifest) {
			t.Errorf("manifest %q", table)
		}
		for i, want := range tt.c.files {
			if !bytes.Equal(files[i], want) {
				t.Errorf("%s has other bytes", names[i])
			}
		}
		for i, r := range tt.c.ranges {
			b := ranges[4+20*i:]
			if binary.LittleEndian.Uint32(b) != r.Source || binary.LittleEndian.Uint64(b[4:]) != r.Offset || binary.LittleEndian.Uint64(b[12:]) != r.Length {
				t.Errorf("range %d is %x, want %v", i, b[:20], r)
			}
		}
	}
}

// secondReader is docs/portable.md put into code once more: it shares nothing
// with the package but the hash function and Zstandard, and gives the parts of
// the contents.
func secondReader(b []byte) (parts [][]byte, err error) {
	if string(b[:8]) != "OCPORT\r\n" || binary.LittleEndian.Uint32(b[8:]) != 1 {
		return nil, errors.New("header")
	}
	if sum := blake3.Sum256(b[:len(b)-32]); !bytes.Equal(sum[:], b[len(b)-32:]) {
		return nil, errors.New("seal")
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	var text []byte
	for b = b[12:]; ; {
		raw, packed := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		b = b[8:]
		if raw == 0 && packed == 0 {
			break
		}
		before := len(text)
		if text, err = dec.DecodeAll(b[:packed], text); err != nil || len(text)-before != int(raw) {
			return nil, errors.Join(errors.New("frame"), err)
		}
		b = b[packed:]
	}
	if len(b) != 32 {
		return nil, errors.New("end")
	}
	part := func(n int) {
		sum := blake3.Sum256(text[:n])
		if !bytes.Equal(sum[:], text[n:n+32]) {
			err = errors.New("hash of a part")
		}
		parts = append(parts, text[:n])
		text = text[n+32:]
	}
	at := 4 + int(binary.LittleEndian.Uint32(text)) + 1
	var sizes []int
	for range text[at-1] {
		at += 1 + int(text[at])
		sizes = append(sizes, int(binary.LittleEndian.Uint64(text[at:])))
		at += 8
	}
	part(at)
	part(4 + 20*int(binary.LittleEndian.Uint32(text)))
	for _, n := range sizes {
		part(n)
	}
	if len(text) > 0 {
		err = errors.New("more contents")
	}
	return parts, err
}
