// SPDX-License-Identifier: Apache-2.0

package index

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// filled makes an index of 256 packs of 4,096 pages.
func filled(b *testing.B) *Index {
	b.Helper()
	ix := openAt(b, filepath.Join(b.TempDir(), "index"))
	for i := range 256 {
		name := fmt.Sprint(i)
		add(b, ix, name, hashes(name, 4096))
	}
	return ix
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkAddPack adds packs of 4,096 pages, 64 at a time: 262,144 pages.
func BenchmarkAddPack(b *testing.B) {
	ix := filled(b)
	packs := make([][][32]byte, 64)
	n := 0
	b.ReportAllocs()
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		for i := range packs {
			packs[i] = hashes(fmt.Sprint("new", n, i), 4096)
		}
		n++
		b.StartTimer()
		before := cpu(b)
		for i := range packs {
			add(b, ix, fmt.Sprint("new", n, i), packs[i])
		}
		used += cpu(b) - before
	}
	b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*64), "us/pack")
}

func BenchmarkLookup(b *testing.B) {
	ix := filled(b)
	absent := hashes("absent", 1<<18)
	var present [][32]byte
	for i := range 64 {
		present = append(present, hashes(fmt.Sprint(i*4), 4096)...)
	}
	for name, c := range map[string]struct {
		pages [][32]byte
		want  int
	}{"absent": {absent, 0}, "present": {present, len(present)}, "absent-1": {absent[:1], 0}, "present-1": {present[:1], 1}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				n := 0
				ix.Lookup(c.pages, func(int, Location) { n++ })
				if n != c.want {
					b.Fatalf("found %d", n)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	ix := filled(b)
	for b.Loop() {
		closeIt(b, ix)
		ix = openAt(b, ix.path)
	}
}
