// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzDamage changes a byte of either file and cuts it: every read gives what
// was written, or nothing.
func FuzzDamage(f *testing.F) {
	f.Add(false, uint16(100), byte(1), uint16(4*PageSize))
	f.Add(true, uint16(8), byte(0xff), uint16(4*sumSize))
	f.Add(true, uint16(0), byte(0), uint16(3))
	f.Fuzz(func(t *testing.T, ofSums bool, at uint16, xor byte, size uint16) {
		const slots = 4
		dir := t.TempDir()
		p := pack(t, open(t, dir, 1<<30), name, slots)
		write(t, p, name, 0, slots)
		path, whole := filepath.Join(dir, name), int64(slots*PageSize)
		if ofSums {
			path, whole = path+sumsSuffix, slots*sumSize
		}
		poke(t, path, int64(at)%whole, xor)
		if err := os.Truncate(path, min(int64(size), whole)); err != nil {
			t.Fatal(err)
		}
		for slot := range slots {
			if dst := make([]byte, PageSize); p.Read(dst, slot) && !bytes.Equal(dst, content(name, slot, 1)) {
				t.Errorf("slot %d has other bytes", slot)
			}
		}
	})
}
