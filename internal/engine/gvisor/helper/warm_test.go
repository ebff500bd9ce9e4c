// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMapping(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]span{
		"7f0000000000-7f0000002000 rw-s 00003000 00:01 1034    /memfd:runsc-memory (deleted)":   {0x3000, 0x5000},
		"7f0000000000-7f0000002000 rw-s 00003000 00:01 1034    /memfd:systrap-memory (deleted)": {},
		"7f0000000000-7f0000002000 rw-p 00000000 00:00 0":                                       {},
		"7f0000002000-7f0000000000 rw-s 00003000 00:01 1034 /memfd:runsc-memory":                {},
		"zz-7f0000000000 rw-s 00003000 00:01 1034 /memfd:runsc-memory":                          {},
		"7f0000000000-7f0000002000 rw-s ffffffffffffffff 00:01 1 /memfd:runsc-memory":           {},
		"": {},
	} {
		if got, ok := parseMapping(line); got != want || ok != (want != span{}) {
			t.Errorf("parseMapping(%q) = %v, %v; want %v", line, got, ok, want)
		}
	}
}

func FuzzParseMapping(f *testing.F) {
	f.Add("7f0000000000-7f0000002000 rw-s 00003000 00:01 1034    /memfd:runsc-memory (deleted)")
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := parseMapping(line); ok && (s.start < 0 || s.end <= s.start) {
			t.Errorf("parseMapping(%q) = %v", line, s)
		}
	})
}

func TestMerged(t *testing.T) {
	t.Parallel()
	got := merged([]span{{30, 40}, {0, 10}, {5, 12}, {12, 20}, {32, 35}})
	if want := []span{{0, 20}, {30, 40}}; !slices.Equal(got, want) {
		t.Errorf("merged = %v, want %v", got, want)
	}
}

func TestHolesAreTheUntouchedPagesOfARange(t *testing.T) {
	t.Parallel()
	got := holes(sparse(t), span{4096, 12 * 4096})
	if want := []span{{4096, 2 * 4096}, {4 * 4096, 8 * 4096}, {9 * 4096, 12 * 4096}}; !slices.Equal(got, want) {
		t.Errorf("holes = %v, want %v", got, want)
	}
}

// What a guest has and never touched is without bound; what is made of it is not.
func TestUntouchedIsBounded(t *testing.T) {
	t.Parallel()
	f := sparse(t)
	for most, want := range map[int64][]span{
		0:        nil,
		4096:     {{0, 4096}},
		2 * 4096: {{0, 2 * 4096}},
		4 * 4096: {{0, 2 * 4096}, {4 * 4096, 6 * 4096}},
		1 << 40:  {{0, 2 * 4096}, {4 * 4096, 6 * 4096}, {7 * 4096, 8 * 4096}, {9 * 4096, 16 * 4096}},
	} {
		var got []span
		for from, to := range untouched(f, []span{{0, 6 * 4096}, {7 * 4096, 16 * 4096}}, most) {
			got = append(got, span{from, to})
		}
		if !slices.Equal(got, want) {
			t.Errorf("at most %d: %v, want %v", most, got, want)
		}
	}
}

// sparse is a file of 16 pages that has pages 2, 3 and 8.
func sparse(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(16 * 4096); err != nil {
		t.Fatal(err)
	}
	for _, page := range []int64{2, 3, 8} {
		if _, err := f.WriteAt([]byte{1}, page*4096); err != nil {
			t.Fatal(err)
		}
	}
	return f
}
