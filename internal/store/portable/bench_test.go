// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/engine"
)

// BenchmarkWrite and BenchmarkRead take 256 MiB of pages: random bytes, text,
// and zeroes. MB/cpu-s is what one CPU does.
func BenchmarkWrite(b *testing.B) {
	benchmark(b, func(b *testing.B, p Parcel, size int64) {
		var n counter
		cpu := cpuMeter(b)
		for b.Loop() {
			n = 0
			if err := Write(b.Context(), &n, p, nil); err != nil {
				b.Fatal(err)
			}
		}
		cpu(size)
		b.ReportMetric(float64(n)/float64(size), "ratio")
	})
}

func BenchmarkRead(b *testing.B) {
	benchmark(b, func(b *testing.B, p Parcel, size int64) {
		var file bytes.Buffer
		if err := Write(b.Context(), &file, p, nil); err != nil {
			b.Fatal(err)
		}
		dir := smallDisk(b, int(size)+1<<20)
		cpu := cpuMeter(b)
		for b.Loop() {
			r, err := Read(b.Context(), bytes.NewReader(file.Bytes()), dir, Limits{}, nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Close()
		}
		cpu(size)
	})
}

// cpuMeter begins to measure CPU time and gives what reports it.
func cpuMeter(b *testing.B) (report func(size int64)) {
	used := func() float64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	before := used()
	return func(size int64) {
		b.ReportMetric(float64(b.N)*float64(size)/1e6/(used()-before), "MB/cpu-s")
	}
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

func benchmark(b *testing.B, run func(b *testing.B, p Parcel, size int64)) {
	const size = 256 << 20
	rng := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, size)
	random(rng, noise)
	words := bytes.Fields([]byte("a page of memory has words in it some of which come again and numbers that differ"))
	text := make([]byte, 0, size+64)
	for len(text) < size {
		text = append(append(text, words[rng.IntN(len(words))]...), noise[len(text)], ' ')
	}
	for _, tt := range []struct {
		name string
		data []byte
	}{{"random", noise}, {"text", text[:size]}, {"zero", make([]byte, size)}} {
		b.Run(tt.name, func(b *testing.B) {
			p := contents{}.parcel()
			p.Ranges = []engine.PageRange{{Length: size}}
			p.Files[4].Size = size
			p.Files[4].Copy = func(_ context.Context, w io.Writer) error {
				_, err := io.Copy(w, struct{ io.Reader }{bytes.NewReader(tt.data)})
				return err
			}
			b.SetBytes(size)
			run(b, p, size)
		})
	}
}
