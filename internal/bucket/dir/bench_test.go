// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"fmt"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/durable"
)

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{4 << 10, 16 << 20} {
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(i * i >> 7)
		}
		for name, cond := range map[string]bucket.Condition{
			"absent": {Absent: true}, "absent volatile": {Absent: true, Volatile: true},
			"overwrite": {}, "overwrite volatile": {Volatile: true},
		} {
			b.Run(fmt.Sprintf("%d KiB/%s", size>>10, name), func(b *testing.B) {
				bk := open(b, b.TempDir(), durable.Disk{})
				b.SetBytes(int64(size))
				n := 0
				for b.Loop() {
					key := "packs/x/k"
					if cond.Absent {
						n++
						key = fmt.Sprint("packs/x/", n)
					}
					if _, err := bk.Put(b.Context(), key, body, cond); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkReadAt(b *testing.B) {
	bk := open(b, b.TempDir(), durable.Disk{})
	if _, err := bk.Put(b.Context(), "packs/x/k", make([]byte, 16<<20), bucket.Condition{}); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	for i := int64(0); b.Loop(); i++ {
		if err := bk.ReadAt(b.Context(), "packs/x/k", p, i*4096%(16<<20)); err != nil {
			b.Fatal(err)
		}
	}
}
