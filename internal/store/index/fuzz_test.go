// SPDX-License-Identifier: Apache-2.0

package index

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// FuzzDamagedFile overwrites some bytes of a file: what is found in it is right
// or absent, it is of use again at once, and nothing panics.
func FuzzDamagedFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "index")
	stored := packs{"a": hashes("a", 3000), "b": hashes("b", 100)}
	ix := openAt(f, path)
	add(f, ix, "a", stored["a"])
	add(f, ix, "b", stored["b"])
	closeIt(f, ix)
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	for at := uint32(0); int(at) < len(file); at += 2039 {
		f.Add(at, []byte{0x81}, uint32(len(file)))
	}
	f.Add(uint32(0), []byte{}, uint32(8192))
	f.Fuzz(func(t *testing.T, at uint32, with []byte, size uint32) {
		damaged := append([]byte(nil), file...)
		copy(damaged[int(at)%len(damaged):], with)
		path := filepath.Join(t.TempDir(), "index")
		if err := os.WriteFile(path, damaged[:min(int(size), len(damaged))], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+markSuffix, mark(boot), 0o600); err != nil {
			t.Fatal(err)
		}
		ix := openAt(t, path)
		for _, pages := range stored {
			countRight(t, ix, pages, stored)
		}
		more := hashes("more", 100)
		add(t, ix, "more", more)
		checkFound(t, ix, more, packs{"more": more})
		for _, pages := range stored {
			countRight(t, ix, pages, stored)
		}
	})
}

// FuzzDecode feeds the decoders of values; the sum is put on, or nothing would
// get past it.
func FuzzDecode(f *testing.F) {
	name, value := makeBlock(1, 2, []entry{{key{1, 2}, 3}, {key{4, 5}, 6}})
	f.Add(name, value)
	f.Add(packKey(7), packValue(7, pack{"name", 12}, []byte("table")))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, name, value []byte) {
		if len(value) >= sumSize {
			value = seal(name, append([]byte(nil), value...))
		}
		if p, table, err := parsePack(name, value); err == nil {
			if again := packValue(binary.BigEndian.Uint32(name), p, table); string(again) != string(value) {
				t.Error("a pack's record that is not what it decodes to")
			}
		}
		if b, _, err := parseBlock(name, value); err == nil {
			if b.len() < 1 || b.entry(b.len()-1).location().Slot >= MaxSlots || b.search(key{}, 0) > b.len() {
				t.Error("an impossible block")
			}
		}
	})
}
