// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"slices"
	"testing"

	"github.com/opencomputer/oc/internal/pager"
)

func TestParseMapping(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]pager.Extent{
		"7f0000000000-7f0000002000 rw-s 00003000 00:01 1034    /memfd:runsc-memory (deleted)":   {Start: 0x3000, End: 0x5000},
		"7f0000000000-7f0000002000 rw-s 00003000 00:01 1034    /memfd:systrap-memory (deleted)": {},
		"7f0000000000-7f0000002000 rw-p 00000000 00:00 0":                                       {},
		"7f0000002000-7f0000000000 rw-s 00003000 00:01 1034 /memfd:runsc-memory":                {},
		"zz-7f0000000000 rw-s 00003000 00:01 1034 /memfd:runsc-memory":                          {},
		"7f0000000000-7f0000002000 rw-s ffffffffffffffff 00:01 1 /memfd:runsc-memory":           {},
		"": {},
	} {
		if got, ok := parseMapping(line); got != want || ok != (want != pager.Extent{}) {
			t.Errorf("parseMapping(%q) = %v, %v; want %v", line, got, ok, want)
		}
	}
}

func FuzzParseMapping(f *testing.F) {
	f.Add("7f0000000000-7f0000002000 rw-s 00003000 00:01 1034    /memfd:runsc-memory (deleted)")
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := parseMapping(line); ok && (s.Start < 0 || s.End <= s.Start) {
			t.Errorf("parseMapping(%q) = %v", line, s)
		}
	})
}

func TestMerged(t *testing.T) {
	t.Parallel()
	got := merged(extents(30, 40, 0, 10, 5, 12, 12, 20, 32, 35))
	if want := extents(0, 20, 30, 40); !slices.Equal(got, want) {
		t.Errorf("merged = %v, want %v", got, want)
	}
}

// What a guest has and never touched is without bound; what is made of it is not.
func TestUntouchedIsBounded(t *testing.T) {
	t.Parallel()
	has := extents(2*4096, 4*4096, 8*4096, 9*4096)
	for most, want := range map[int64][]pager.Extent{
		0:        nil,
		4096:     extents(0, 4096),
		2 * 4096: extents(0, 2*4096),
		4 * 4096: extents(0, 2*4096, 4*4096, 6*4096),
		1 << 40:  extents(0, 2*4096, 4*4096, 6*4096, 7*4096, 8*4096, 9*4096, 16*4096),
	} {
		var got []pager.Extent
		for from, to := range untouched(has, extents(0, 6*4096, 7*4096, 16*4096), most) {
			got = append(got, pager.Extent{Start: from, End: to})
		}
		if !slices.Equal(got, want) {
			t.Errorf("at most %d: %v, want %v", most, got, want)
		}
	}
}

// What a file has may lie anywhere in, over and beside the ranges.
func TestUntouchedOfRanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ has, ranges, want []pager.Extent }{
		{nil, extents(1, 5), extents(1, 5)},
		{extents(0, 9), extents(1, 3, 4, 6), nil},
		{extents(0, 2, 4, 6, 8, 12), extents(1, 5, 6, 9, 20, 21), extents(2, 4, 6, 8, 20, 21)},
		{extents(5, 6), extents(1, 5, 6, 7), extents(1, 5, 6, 7)},
		{extents(1, 2), nil, nil},
	} {
		var got []pager.Extent
		for from, to := range untouched(c.has, c.ranges, 1<<40) {
			got = append(got, pager.Extent{Start: from, End: to})
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("of %v without %v: %v, want %v", c.ranges, c.has, got, c.want)
		}
	}
}

// extents makes extents of their bounds.
func extents(bounds ...int64) (all []pager.Extent) {
	for pair := range slices.Chunk(bounds, 2) {
		all = append(all, pager.Extent{Start: pair[0], End: pair[1]})
	}
	return all
}
