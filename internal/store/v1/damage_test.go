// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/fault"
)

// storedFiles are all files of a stored checkpoint.
var storedFiles = []string{FileState, FileMeta, FilePages, fileSums, fileRanges, fileManifest}

const damagedID = "cp-dead0001"

// namesIt demands the error of a damaged checkpoint.
func namesIt(t *testing.T, err error, doing string) {
	t.Helper()
	f := fault.As(err)
	if err == nil || f.Kind != fault.Damaged || !strings.Contains(f.Message, damagedID) || f.Hint == "" {
		t.Errorf("%s: %v; want a damage of %s with a hint", doing, err, damagedID)
	}
}

// offsets are where a file gets flipped: everywhere if it is small, else at
// the edges of its blocks and at random.
func offsets(size int64, rng *rand.Rand) []int64 {
	var out []int64
	if size <= 4096 {
		for i := range size {
			out = append(out, i)
		}
		return out
	}
	for b := int64(0); b < size; b += blockSize {
		out = append(out, b, min(b+blockSize, size)-1)
	}
	for range 20 {
		out = append(out, rng.Int64N(size))
	}
	return out
}

// One flipped bit in any file is found, before a byte of that block is served.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	d := openStore(t)
	c := newCapture(rng, blockSize+100, 700, 3*blockSize+page)
	put(t, d, damagedID, c)
	for _, name := range storedFiles {
		path := filepath.Join(d.Path(damagedID), name)
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range offsets(int64(len(raw)), rng) {
			poke(t, path, off, raw[off]^1<<rng.IntN(8))
			im, err := d.Open(damagedID)
			if err != nil {
				namesIt(t, err, "Open with a bit of "+name+" flipped")
			} else {
				if name == fileSums || name == fileRanges || name == fileManifest {
					t.Errorf("a flipped bit at %d of %s was not found by Open", off, name)
				}
				rightOrError(t, im, c, rng)
				namesIt(t, im.Verify(t.Context()), "Verify with a bit of "+name+" flipped")
				im.Close()
			}
			poke(t, path, off, raw[off])
		}
	}
	if err := open(t, d, damagedID).Verify(t.Context()); err != nil {
		t.Errorf("after repair: %v", err)
	}
}

// poke puts one byte in place in a file.
func poke(t *testing.T, path string, off int64, b byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{b}, off)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// rightOrError reads at random: what comes is right, or an error comes and
// nothing else.
func rightOrError(t *testing.T, im *Image, c testCapture, rng *rand.Rand) {
	t.Helper()
	for _, name := range []string{FileState, FileMeta, FilePages} {
		want := c.file(name)
		for range 4 {
			off := rng.Int64N(int64(len(want)))
			p := make([]byte, 1+rng.IntN(2*blockSize))
			n, err := im.File(name).ReadAt(p, off)
			if !bytes.Equal(p[:n], want[off:][:n]) || !bytes.Equal(p[n:], make([]byte, len(p)-n)) {
				t.Errorf("%s: wrong bytes were served at %d (%v)", name, off, err)
			}
			if err != nil && !errors.Is(err, io.EOF) {
				namesIt(t, err, "ReadAt of "+name)
			}
		}
	}
}

// A block that changes after it was verified is found when it is read again.
func TestChangedAfterVerification(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	c := newCapture(seeded(t), 10, 10, 2*blockSize)
	put(t, d, damagedID, c)
	im := open(t, d, damagedID)
	if err := im.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	poke(t, filepath.Join(d.Path(damagedID), FilePages), blockSize+5, ^c.pages[blockSize+5])
	_, err := im.File(FilePages).ReadAt(make([]byte, page), blockSize)
	namesIt(t, err, "ReadAt of a changed block")
	if _, err := im.File(FilePages).ReadAt(make([]byte, page), 0); err != nil {
		t.Errorf("ReadAt of the other block: %v", err)
	}
}

func TestBrokenCheckpoints(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	for _, name := range storedFiles {
		path := func(d *Dir) string { return filepath.Join(d.Path(damagedID), name) }
		for what, harm := range map[string]func(d *Dir) error{
			"missing": func(d *Dir) error { return os.Remove(path(d)) },
			"empty":   func(d *Dir) error { return os.Truncate(path(d), 0) },
			"one byte short": func(d *Dir) error {
				st, err := os.Stat(path(d))
				if err != nil {
					return err
				}
				return os.Truncate(path(d), st.Size()-1)
			},
			"one byte long": func(d *Dir) error {
				st, err := os.Stat(path(d))
				if err != nil {
					return err
				}
				return os.Truncate(path(d), st.Size()+1)
			},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				d := openStore(t)
				put(t, d, damagedID, newCapture(rand.New(rand.NewPCG(rng.Uint64(), 1)), 500, 500, page))
				if err := harm(d); err != nil {
					t.Fatal(err)
				}
				_, err := d.Open(damagedID)
				namesIt(t, err, "Open")
				if err := d.Delete(damagedID); err != nil {
					t.Errorf("Delete of a damaged one: %v", err)
				}
			})
		}
	}
}

// A file cut off under an open image is an error, too.
func TestTruncatedWhileOpen(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	put(t, d, damagedID, newCapture(seeded(t), 10, 10, 3*blockSize))
	im := open(t, d, damagedID)
	if err := os.Truncate(filepath.Join(d.Path(damagedID), FilePages), blockSize+10); err != nil {
		t.Fatal(err)
	}
	_, err := im.File(FilePages).ReadAt(make([]byte, page), blockSize)
	namesIt(t, err, "ReadAt")
	namesIt(t, im.Verify(t.Context()), "Verify")
}

// reseal edits the JSON of a manifest and gives it a right seal.
func reseal(t *testing.T, d *Dir, id string, edit func(m map[string]any)) {
	t.Helper()
	path := filepath.Join(d.Path(id), fileManifest)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw[:bytes.LastIndex(raw, []byte(sealLine))], &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	sum := blake3.Sum256(body)
	if err := os.WriteFile(path, append(body, sealLine+hex.EncodeToString(sum[:])+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Manifests with a right seal that do not fit the format or the place.
func TestImplausibleManifests(t *testing.T) {
	t.Parallel()
	file := func(i int, key string, v any) func(map[string]any) {
		return func(m map[string]any) { m["files"].([]any)[i].(map[string]any)[key] = v }
	}
	table := func(which, key string, v any) func(map[string]any) {
		return func(m map[string]any) { m[which].(map[string]any)[key] = v }
	}
	set := func(key string, v any) func(map[string]any) { return func(m map[string]any) { m[key] = v } }
	for what, edit := range map[string]func(map[string]any){
		"foreign":          set("checkpoint", "cp-other"),
		"other format":     set("format", "tar"),
		"version 0":        set("version", 0),
		"version missing":  func(m map[string]any) { delete(m, "version") },
		"version a string": set("version", "1"),
		"block size":       set("blockSize", 4096),
		"no files":         set("files", []any{}),
		"file a path":      file(0, "name", "../../../etc/passwd"),
		"file twice":       file(1, "name", FileState),
		"negative size":    file(2, "size", -1),
		"huge size":        file(2, "size", 1<<60),
		"other size":       file(2, "size", 1),
		"sums size":        table("sums", "size", 1<<62),
		"ranges size":      table("ranges", "size", -5),
		"ranges too small": table("ranges", "size", 3),
		"sums hash":        table("sums", "blake3", "00"),
		"field type":       set("shape", "large"),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := openStore(t)
			put(t, d, damagedID, newCapture(rand.New(rand.NewPCG(1, 2)), 500, 500, 2*page))
			reseal(t, d, damagedID, edit)
			_, err := d.Open(damagedID)
			namesIt(t, err, "Open")
		})
	}
}

// A later release's checkpoint is refused with what to do, whatever else its
// manifest means by then; what a later release only adds is passed over.
func TestLaterVersions(t *testing.T) {
	t.Parallel()
	d := openStore(t)
	rng := seeded(t)
	put(t, d, "cp-2", newCapture(rng, 10, 10, 0))
	reseal(t, d, "cp-2", func(m map[string]any) {
		keep := map[string]any{"format": m["format"], "version": 2, "checkpoint": "cp-2", "files": "elsewhere"}
		clear(m)
		maps.Copy(m, keep)
	})
	_, err := d.Open("cp-2")
	if f := fault.As(err); err == nil || f.Kind != fault.Invalid || !strings.Contains(f.Message, "cp-2 has format version 2") || f.Hint != "upgrade oc" {
		t.Errorf("version 2: %v", err)
	}
	c := newCapture(rng, 10, 10, page)
	m := put(t, d, "cp-1", c)
	reseal(t, d, "cp-1", func(m map[string]any) { m["addedLater"] = map[string]any{"x": 1} })
	checkStored(t, d, "cp-1", m, c, rng)
}
