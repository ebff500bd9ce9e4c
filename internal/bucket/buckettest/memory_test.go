// SPDX-License-Identifier: Apache-2.0

package buckettest

import (
	"errors"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	Conformance(t, func(*testing.T) bucket.Bucket { return new(Memory) })
}

func TestFaultyWithoutFaults(t *testing.T) {
	t.Parallel()
	Conformance(t, func(*testing.T) bucket.Bucket { return NewFaulty(new(Memory), nil) })
}

func TestFaulty(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fault  Fault
		err    error
		effect bool
		later  error
	}{
		{FaultNone, nil, true, nil},
		{FaultBefore, ErrInjected, false, nil},
		{FaultAfter, ErrInjected, true, nil},
		{FaultCrashBefore, ErrCrashed, false, ErrCrashed},
		{FaultCrashAfter, ErrCrashed, true, ErrCrashed},
	} {
		var m Memory
		f := NewFaulty(&m, func(op, key string) Fault {
			if op == OpPut && key == "k" {
				return c.fault
			}
			return FaultNone
		})
		_, err := f.Put(t.Context(), "k", nil, always)
		expectErr(t, c.err, err)
		if _, _, err := m.Get(t.Context(), "k"); errors.Is(err, bucket.ErrNotExist) == c.effect {
			t.Errorf("fault %d: %v", c.fault, err)
		}
		_, err = f.Put(t.Context(), "other", nil, always)
		expectErr(t, c.later, err)
	}
	f := NewFaulty(new(Memory), nil)
	f.Crash()
	_, _, err := f.List(t.Context(), "", "", 0)
	expectErr(t, ErrCrashed, err)
}

// One seed gives one sequence of faults, of about the share asked for.
func TestSeeded(t *testing.T) {
	t.Parallel()
	a, b := Seeded(7, 0.5), Seeded(7, 0.5)
	var count [FaultCrashAfter + 1]int
	for range 1000 {
		x := a(OpGet, "k")
		if y := b(OpGet, "k"); x != y {
			t.Fatalf("%d and %d", x, y)
		}
		count[x]++
	}
	if count[FaultBefore] < 150 || count[FaultAfter] < 150 || count[FaultNone] < 400 {
		t.Errorf("%v", count)
	}
}
