// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
)

// Those who load the same image one behind the other have each segment fetched
// once, as long as they are not further apart than what is kept.
func TestRecentForMany(t *testing.T) {
	t.Parallel()
	for readers, apart := range map[int]int{1: 15, 4: 63, 8: 127, 100: 127} {
		var r recent
		r.widen(readers)
		fetched := map[int]int{}
		get := func(segment int) {
			_, err := r.get(segment, true, func() ([]byte, error) { fetched[segment]++; return nil, nil })
			if err != nil {
				t.Fatal(err)
			}
		}
		const segments = 300
		for i := range segments {
			get(i)
			if i >= apart {
				get(i - apart)
			}
		}
		for s, n := range fetched {
			if n != 1 {
				t.Errorf("%d readers, %d apart: segment %d was fetched %d times", readers, apart, s, n)
				break
			}
		}
	}
}

// What could not be fetched is tried again.
func TestRecentFailure(t *testing.T) {
	t.Parallel()
	var r recent
	r.widen(1)
	broken := errors.New("broken")
	if _, err := r.get(1, true, func() ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("a failed fetch gave %v", err)
	}
	if b, err := r.get(1, true, func() ([]byte, error) { return []byte{1}, nil }); err != nil || len(b) != 1 {
		t.Errorf("the next one gave %v, %v", b, err)
	}
}

// A segment is proven by what it was: any other bytes are not, nor another
// segment's.
func TestProven(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	p := newProven(2)
	b := make([]byte, 64<<10)
	random(rng, b)
	if p.is(0, b) {
		t.Error("a segment that was never proven is")
	}
	p.add(0, b)
	if !p.is(0, b) || p.is(1, b) {
		t.Error("a proven segment is not, or another one is")
	}
	b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
	if p.is(0, b) {
		t.Error("a segment with another bit is proven")
	}
}

// What was proven once and is damaged afterwards is found when it is read again.
func TestDamageAfterProof(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	b := &buckettest.Memory{}
	s := openStore(t, b)
	id := mustPut(t, s, "cp-1", newGuest(rng, 400).content(), "")
	im, err := s.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for range 2 {
		if err := im.Verify(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	var last format.Segment
	for _, seg := range im.table.Segments {
		if im.vault.direct(seg.Codec) {
			last = seg
		}
	}
	if last.Size == 0 {
		t.Fatal("no segment is read from the bucket each time")
	}
	pack := im.table.Packs[last.Pack]
	raw, _, err := b.Get(t.Context(), pack)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Clone(raw)
	raw[last.Offset+int64(last.Size)/2] ^= 1
	if _, err := b.Put(t.Context(), pack, raw, bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := im.Verify(t.Context(), nil); !fault.Is(err, fault.Damaged) {
		t.Errorf("a damaged segment that was proven before: %v", err)
	}
}

// What the cache has is read from there, whatever part of it is asked for: also the
// ends of files that are no whole pages.
func TestCachedIsNotFetched(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	var away atomic.Bool
	s := openStore(t, buckettest.NewFaulty(&buckettest.Memory{}, func(op, _ string) buckettest.Fault {
		if op == buckettest.OpReadAt && away.Load() {
			return buckettest.FaultBefore
		}
		return buckettest.FaultNone
	}))
	s.vault.remote = true // all goes through the cache
	want := newGuest(rng, 100).content()
	im, err := s.Image(t.Context(), mustPut(t, s, "cp-1", want, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	away.Store(true)
	compare(t, im, want, rng)
}
