// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
)

// counted is a bucket for many goroutines that counts requests and lets a test
// see or fail each.
type counted struct {
	mu     sync.Mutex
	m      *memory
	count  map[string]int
	before func(op, key string) error
}

func newCounted(m *memory) *counted { return &counted{m: m, count: map[string]int{}} }

func (c *counted) enter(op, key string) (func(), error) {
	if c.before != nil {
		if err := c.before(op, key); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	c.count[op]++
	return c.mu.Unlock, nil
}

func (c *counted) Put(ctx context.Context, key string, body []byte, cond bucket.Condition) (string, error) {
	op := "put"
	if cond.Volatile {
		op = "put volatile"
	}
	leave, err := c.enter(op, key)
	if err != nil {
		return "", err
	}
	defer leave()
	return c.m.Put(ctx, key, body, cond)
}

func (c *counted) Get(ctx context.Context, key string) ([]byte, string, error) {
	leave, err := c.enter("get", key)
	if err != nil {
		return nil, "", err
	}
	defer leave()
	return c.m.Get(ctx, key)
}

func (c *counted) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	leave, err := c.enter("read", key)
	if err != nil {
		return err
	}
	defer leave()
	return c.m.ReadAt(ctx, key, p, off)
}

func (c *counted) List(ctx context.Context, prefix, after string, limit int) ([]bucket.Object, bool, error) {
	leave, err := c.enter("list", prefix)
	if err != nil {
		return nil, false, err
	}
	defer leave()
	return c.m.List(ctx, prefix, after, limit)
}

func (c *counted) Delete(ctx context.Context, key string) error {
	leave, err := c.enter("delete", key)
	if err != nil {
		return err
	}
	defer leave()
	return c.m.Delete(ctx, key)
}

// checkpoint commits one with a pack of its own and all of its bases'.
func checkpoint(t *testing.T, l *Log, payload string, pins ...string) (id string, packs []string) {
	t.Helper()
	w, err := l.Begin(t.Context(), pins, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := w.NewPack()
	if err == nil {
		err = w.Put(t.Context(), key, []byte("pack of "+payload))
	}
	packs = []string{key}
	for _, b := range w.Bases() {
		packs = append(packs, b.Packs...)
	}
	if err == nil {
		err = w.Commit(t.Context(), packs, []byte(payload))
	}
	if err != nil {
		t.Fatal(err)
	}
	return w.ID(), packs
}

func TestLifeOfACheckpoint(t *testing.T) {
	t.Parallel()
	b := newCounted(newMemory(2))
	l := New(b, Config{})
	a, packsA := checkpoint(t, l, "one")
	c, packsC := checkpoint(t, l, "two\nlines", a)
	if c <= a || len(packsC) != 2 {
		t.Fatalf("%s after %s, packs %v", c, a, packsC)
	}
	o, err := l.Get(t.Context(), c)
	if err != nil || o.State != Committed || string(o.Payload) != "two\nlines" || !slices.Equal(o.Packs, packsC) || !o.Expiry.IsZero() {
		t.Fatalf("%+v, %v", o, err)
	}
	for range 2 {
		if err := l.Delete(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if w, err := l.Begin(t.Context(), []string{a, c}, nil); err != nil || len(w.Bases()) != 1 || w.Abort(t.Context()) != nil {
		t.Fatalf("a deleted base is used, or %v", err)
	}
	if _, _, err := l.Read(t.Context(), a); !errors.Is(err, ErrState) {
		t.Errorf("reading what is deleted: %v", err)
	}
	dry, err := l.Sweep(t.Context(), Options{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	steps := 0
	done, err := l.Sweep(t.Context(), Options{Progress: func(Report) { steps++ }})
	if err != nil || steps == 0 || done.Removed != 2 || done != dry {
		t.Fatalf("%+v, dry %+v, %d steps, %v", done, dry, steps, err)
	}
	if err := l.Delete(t.Context(), a); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
	if err := l.Delete(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var deleting []int64 // the totals that are told while packs go
	done, err = l.Sweep(t.Context(), Options{Progress: func(r Report) {
		if r.Packs > 0 {
			deleting = append(deleting, r.Total)
		}
	}})
	if want := int64(len("pack of one") + len("pack of two\nlines")); err != nil || done.Packs != 2 || done.Bytes != want || done.Total != want || len(b.m.objects) != 0 {
		t.Errorf("%+v, %d objects left, %v; packs were %v", done, len(b.m.objects), err, packsA)
	}
	for _, total := range deleting {
		if total != done.Total {
			t.Errorf("%d bytes in all at the end, on the way %d", done.Total, deleting)
		}
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	l := New(newMemory(0), Config{Clock: func() time.Time { return time.Unix(0, 7) }})
	id, err := l.newID(nil)
	if err != nil || !ValidID(id) || !strings.HasPrefix(id, "0000000000000000007-") {
		t.Errorf("%q, %v", id, err)
	}
	future := fmt.Sprintf("%019d-%016x", int64(math.MaxInt64)-1, 5)
	if id, err = l.newID([]string{id, future}); err != nil || id <= future {
		t.Errorf("%q after %q, %v", id, future, err)
	}
	for _, pin := range []string{fmt.Sprintf("%019d-%016x", int64(math.MaxInt64), 5), "x", future + "0"} {
		if id, err := l.newID([]string{pin}); err == nil {
			t.Errorf("%q after %q", id, pin)
		}
	}
	for key, want := range map[string]bool{
		PackRoot + future + "/a": true, PackRoot + future + "/a/b": false, PackRoot + "a/b": false,
		"images/x/" + future + "-0": true, "images/" + future + "-": false, "images/" + future: false, future + "-0": false,
		Prefix + future + "-0": false, "images/../" + future + "-0": false, "a//" + future + "-0": false, "a b/" + future + "-0": false,
		PackRoot + future + "/" + strings.Repeat("x", maxKey): false,
	} {
		if id, ok := Owner(key); ok != want || ok && id != future {
			t.Errorf("Owner(%q) = %q, %v", key, id, ok)
		}
	}
}

func TestWriterKeepsToItsKeys(t *testing.T) {
	t.Parallel()
	b := newCounted(newMemory(0))
	l := New(b, Config{})
	base, basePacks := checkpoint(t, l, "base")
	other, otherPacks := checkpoint(t, l, "other")
	w, err := l.Begin(t.Context(), []string{base}, func(id string) []string { return []string{"images/x/" + id + "-0"} })
	if err != nil {
		t.Fatal(err)
	}
	key, _ := w.NewPack()
	for _, k := range []string{PackRoot + other + "/x", "images/x/" + w.ID() + "-1", Prefix + w.ID(), "x"} {
		if err := w.Put(t.Context(), k, nil); err == nil {
			t.Errorf("wrote %s", k)
		}
	}
	for _, k := range []string{key, "images/x/" + w.ID() + "-0"} {
		if err := w.Put(t.Context(), k, []byte("x")); err != nil {
			t.Error(err)
		}
		if err := w.Put(t.Context(), k, []byte("y")); err == nil {
			t.Errorf("wrote %s twice", k)
		}
	}
	for _, packs := range [][]string{otherPacks, {PackRoot + w.ID() + "/never"}, {key, key}} {
		if err := w.Commit(t.Context(), packs, nil); err == nil {
			t.Errorf("committed %v", packs)
		}
	}
	if err := w.Commit(t.Context(), nil, make([]byte, bucket.MaxObject)); err == nil {
		t.Error("committed more than an object")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Commit(ended, nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := w.Commit(t.Context(), append(basePacks, key), []byte("p")); err != nil {
		t.Errorf("refused arguments ended the writer: %v", err)
	}
	if err := w.Commit(t.Context(), nil, nil); err == nil {
		t.Error("committed twice")
	}
	if err := w.Put(t.Context(), key+"x", nil); err == nil {
		t.Error("wrote after the commit")
	}
	if err := w.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	if o, err := l.Get(t.Context(), w.ID()); err != nil || o.State != Committed {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestPutThatWasRepeated: a library that repeats a Put finds its own pack.
func TestPutThatWasRepeated(t *testing.T) {
	t.Parallel()
	m := newMemory(0)
	w, err := New(m, Config{}).Begin(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Abort(t.Context()) }()
	key, _ := w.NewPack()
	m.set(key, []byte("pack"))
	if err := w.Put(t.Context(), key, []byte("pack")); err != nil {
		t.Error(err)
	}
	key, _ = w.NewPack()
	m.set(key, []byte("other"))
	if err := w.Put(t.Context(), key, []byte("pack")); !errors.Is(err, bucket.ErrCondition) {
		t.Error(err)
	}
}

// TestRenewal: claims outlive any number of TTLs, and one that was revoked ends
// its holder's context; a lease is volatile, a writer's object is not.
func TestRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newCounted(newMemory(0))
		var failing atomic.Bool
		b.before = func(_, key string) error {
			if failing.Load() && strings.HasPrefix(key, Prefix) {
				return errFault
			}
			return nil
		}
		var c clock
		now := func() time.Time { return time.Unix(1e9, 0).Add(c.since()) }
		l := New(b, Config{TTL: testTTL, Clock: now})
		l.pause = c.pause
		pass := func() { // renewals are due, and done
			synctest.Wait()
			c.advance(testTTL / 4)
			synctest.Wait()
		}
		id, _ := checkpoint(t, l, "x")
		durable := b.count["put"]
		s, o, err := l.Read(t.Context(), id)
		if err != nil || string(o.Payload) != "x" {
			t.Fatal(err)
		}
		if b.count["put"] != durable || b.count["put volatile"] != 1 {
			t.Errorf("%v", b.count)
		}
		w, err := l.Begin(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			failing.Store(i == 10) // a short time without the bucket is no reason to stop
			pass()
			failing.Store(false)
			pass()
			if r, err := l.Sweep(t.Context(), Options{Audit: true}); err != nil || r.Revoked != 0 {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		if s.Context().Err() != nil || w.Context().Err() != nil {
			t.Error("a claim was lost")
		}
		if err := l.Delete(t.Context(), w.ID()); !errors.Is(err, ErrState) {
			t.Errorf("deleted a writer: %v", err)
		}
		ahead := New(b, Config{Clock: func() time.Time { return now().Add(time.Hour) }})
		if err := ahead.Delete(t.Context(), w.ID()); err != nil {
			t.Error(err)
		}
		if r, err := ahead.Sweep(t.Context(), Options{}); err != nil || r.Revoked != 1 || r.Removed != 2 {
			t.Errorf("%+v, %v", r, err)
		}
		pass()
		pass()
		for _, ctx := range []context.Context{w.Context(), s.Context()} {
			if !errors.Is(context.Cause(ctx), ErrRevoked) {
				t.Errorf("the cause is %v", context.Cause(ctx))
			}
		}
		key, _ := w.NewPack()
		if err := w.Put(t.Context(), key, nil); !errors.Is(err, ErrRevoked) {
			t.Error(err)
		}
		if err := w.Commit(t.Context(), nil, nil); !errors.Is(err, ErrRevoked) {
			t.Error(err)
		}
		if err := errors.Join(s.Close(t.Context()), s.Close(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// TestSweepStops: whatever a sweep does not understand keeps everything.
func TestSweepStops(t *testing.T) {
	t.Parallel()
	good := func(m *memory, key string) []byte { return bytes.Clone(m.objects[key].body) }
	for name, damage := range map[string]func(m *memory){
		"empty": func(m *memory) { m.set(Prefix+idA, nil) },
		"name":  func(m *memory) { m.set(Prefix+"x", good(m, Prefix+idB)) },
		"moved": func(m *memory) { m.set(Prefix+idA, good(m, Prefix+idB)) },
		"newer": func(m *memory) { m.set(Prefix+idA, []byte("{\"version\":2,\"other\":1}\n")) },
		"digit": func(m *memory) {
			m.set(Prefix+idB, bytes.Replace(good(m, Prefix+idB), []byte("/a"), []byte("/c"), 1))
		},
		"cut":          func(m *memory) { b := good(m, Prefix+idB); m.set(Prefix+idB, b[:len(b)-1]) },
		"more":         func(m *memory) { m.set(Prefix+idB, append(good(m, Prefix+idB), 'x')) },
		"out of order": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bases("dB", 0)
			var b bucket.Bucket = m
			want := ErrDamaged
			if damage != nil {
				damage(m)
			} else {
				b, want = backwards{m}, nil
			}
			if name == "newer" {
				want = ErrNewer
			}
			before := len(m.objects)
			l := New(b, Config{})
			_, err := l.Sweep(t.Context(), Options{Audit: true})
			if err == nil || want != nil && !errors.Is(err, want) || len(m.objects) != before {
				t.Errorf("%v; %d objects of %d", err, len(m.objects), before)
			}
			if damage == nil {
				return
			}
			if !strings.Contains(err.Error(), Prefix) {
				t.Errorf("%v names no object", err)
			}
			seen, bad := 0, 0
			err = l.List(t.Context(), func(o *Object, err error) error {
				if seen++; err != nil {
					bad++
				}
				return nil
			})
			if err != nil || bad != 1 || seen != len(m.keys(Prefix)) {
				t.Errorf("listed %d, %d of them bad, %v", seen, bad, err)
			}
		})
	}
}

// backwards lists in the wrong order.
type backwards struct{ *memory }

func (b backwards) List(ctx context.Context, prefix, after string, limit int) ([]bucket.Object, bool, error) {
	page, more, err := b.memory.List(ctx, prefix, after, limit)
	slices.Reverse(page)
	return page, more, err
}

// TestSweepReadsOnce: a committed object is read by the first sweep alone.
func TestSweepReadsOnce(t *testing.T) {
	t.Parallel()
	b := newCounted(newMemory(0))
	l := New(b, Config{})
	id, _ := checkpoint(t, l, "x")
	for _, want := range []int{1, 0, 0} {
		before := b.count["get"]
		if _, err := l.Sweep(t.Context(), Options{}); err != nil || b.count["get"]-before != want {
			t.Errorf("%d gets, not %d, %v", b.count["get"]-before, want, err)
		}
	}
	if err := l.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Sweep(t.Context(), Options{}); err != nil || r.Packs != 1 || len(b.m.objects) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestAuditLeavesStrangers: what is not named as a pack is nobody's to delete.
func TestAuditLeavesStrangers(t *testing.T) {
	t.Parallel()
	m := bases("B", 0)
	strangers := []string{PackRoot + "README", "images/base.erofs", "images/x/" + idB, "other/x/" + idB + "-0"}
	for _, k := range append(strangers, "images/x/"+idA+"-0", PackRoot+idB+"/late") {
		m.set(k, []byte("12345"))
	}
	r, err := New(m, Config{Roots: []string{"images/"}}).Sweep(t.Context(), Options{Audit: true})
	if err != nil || r.Packs != 2 || r.Bytes != 10 || r.Unknown != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, k := range append(strangers, packA, packB) {
		if _, ok := m.objects[k]; !ok {
			t.Errorf("%s is gone", k)
		}
	}
}

// TestDeleteFails: a sweep that cannot delete a pack keeps the object that names it.
func TestDeleteFails(t *testing.T) {
	t.Parallel()
	b := newCounted(bases("d", 0))
	l := New(b, Config{})
	b.before = func(op, key string) error {
		if op == "delete" && key == packA {
			return errFault
		}
		return nil
	}
	if _, err := l.Sweep(t.Context(), Options{}); !errors.Is(err, errFault) || len(b.m.objects) != 2 {
		t.Errorf("%v, %d left", err, len(b.m.objects))
	}
	b.before = nil
	if _, err := l.Sweep(t.Context(), Options{}); err != nil || len(b.m.objects) != 0 {
		t.Errorf("%v, %d left", err, len(b.m.objects))
	}
}

// TestDeleteDamaged: what is damaged can be deleted, but not while somebody pins
// it who may have read before what it lists. An audit then frees what only it
// listed.
func TestDeleteDamaged(t *testing.T) {
	t.Parallel()
	m := bases("ABr", 1)
	m.set(Prefix+"x", []byte("nobody's"))
	body := bytes.Clone(m.objects[Prefix+idB].body)
	body[len(body)/2] ^= 1
	m.set(Prefix+idB, body)
	read := New(m, Config{Clock: func() time.Time { return time.Unix(0, 0) }})
	if err := read.Delete(t.Context(), idB); !errors.Is(err, ErrState) || m.objects[Prefix+idB].body == nil {
		t.Errorf("beside a reader: %v", err)
	}
	later := New(m, Config{}) // the reader's claim has expired
	for range 2 {
		if err := later.Delete(t.Context(), idB); err != nil {
			t.Error(err)
		}
	}
	if o, err := later.Get(t.Context(), idR); err != nil || o.State != Revoked {
		t.Errorf("the reader's claim: %+v, %v", o, err)
	}
	m.set(Prefix+idB, []byte("{\"version\":2,\"other\":1}\n"))
	if err := later.Delete(t.Context(), idB); !errors.Is(err, ErrNewer) {
		t.Errorf("a later release's: %v", err)
	}
	for _, key := range []string{Prefix + idB, Prefix + "x"} {
		if err := m.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	r, err := later.Sweep(t.Context(), Options{Audit: true})
	if left := m.keys(""); err != nil || r.Packs != 1 || !slices.Equal(left, []string{Prefix + idA, packA}) {
		t.Errorf("%+v, %v; left are %v", r, err, left)
	}
}
