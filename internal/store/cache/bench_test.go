// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"fmt"
	"testing"
)

func BenchmarkRead(b *testing.B) {
	const slots = 16384
	p := pack(b, open(b, b.TempDir(), 1<<30), name, slots)
	write(b, p, name, 0, slots)
	for _, size := range []int{PageSize, 64 * PageSize} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			dst := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			slot := 0
			for b.Loop() {
				if !p.Read(dst, slot) {
					b.Fatal("a miss")
				}
				slot = (slot + len(dst)/PageSize*7) % slots
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	const slots = 16384
	p := pack(b, open(b, b.TempDir(), 1<<30), name, slots)
	src := content(name, 0, 64)
	b.SetBytes(int64(len(src)))
	slot := 0
	for b.Loop() {
		if err := p.Write(src, slot); err != nil {
			b.Fatal(err)
		}
		slot = (slot + 64) % slots
	}
}
