// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"time"
)

// sample holds what repeated runs of one measure gave: milliseconds or MiB.
type sample []float64

func (s *sample) addTime(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

func (s *sample) addBytes(n int64) { *s = append(*s, float64(n)/(1<<20)) }

// median is the middle one, or the mean of the two in the middle; 0 of none.
func (s sample) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// String is "median (min–max)", "–" of none.
func (s sample) String() string {
	if len(s) == 0 {
		return "–"
	}
	if len(s) == 1 {
		return short(s[0])
	}
	return fmt.Sprintf("%s (%s–%s)", short(s.median()), short(slices.Min(s)), short(slices.Max(s)))
}

// short gives three digits or so: more would pretend.
func short(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
