// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
)

// The newest are kept, as many as there is room for.
func TestBases(t *testing.T) {
	t.Parallel()
	var k bases
	keep := func(from, to int) (kept []int) {
		for i := from; i < to; i++ {
			if b := k.get(fmt.Sprint(i)); b != nil && b.Seed == uint64(i) {
				kept = append(kept, i)
			}
		}
		return kept
	}
	const each = keptBases / 4 / 8
	for i := range 10 {
		k.add(fmt.Sprint(i), &engine.Base{Hashes: make([]uint64, each), Seed: uint64(i)})
	}
	if got := fmt.Sprint(keep(0, 10)); got != "[6 7 8 9]" {
		t.Errorf("of ten, for four of which there is room, are kept: %s", got)
	}
	k.add("10", &engine.Base{Hashes: make([]uint64, 3*each), Seed: 10})
	if got := fmt.Sprint(keep(0, 11)); got != "[9 10]" {
		t.Errorf("beside a larger one are kept: %s", got)
	}
	k.add("11", &engine.Base{Hashes: make([]uint64, 5*each), Seed: 11})
	if got := fmt.Sprint(keep(0, 12)); got != "[]" {
		t.Errorf("one for which there is no room is kept: %s", got)
	}
}
