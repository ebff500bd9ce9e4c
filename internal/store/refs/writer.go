// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
)

// ErrUnknown says that a commit may or may not have happened, or may yet. Get of
// the id tells later, and an audit clears away what was not committed.
var ErrUnknown = errors.New("refs: outcome unknown")

// Writer makes one checkpoint: packs first, then the commit. Its methods except
// Commit and Abort may be used by many goroutines.
type Writer struct {
	c     *claim
	bases []*Object

	mu    sync.Mutex
	used  map[string]bool // keys that Put was called for; true once the pack is there
	ended bool
}

// Begin creates the object of a new checkpoint, and then looks at the pinned
// ones: Bases gives those whose packs it may refer to. declare, which may be nil,
// names the packs for Put that are not below packs/<id>/; all must be keys of
// which the new id is the Owner.
//
// The object is renewed until Commit or Abort, one of which must be called.
func (l *Log) Begin(ctx context.Context, pins []string, declare func(id string) []string) (*Writer, error) {
	var early []*Object
	if l.faults.basesFirst {
		var err error
		if early, err = l.bases(ctx, pins); err != nil {
			return nil, err
		}
	}
	c, err := l.claim(ctx, Writing, slices.Clone(pins), declare)
	if err != nil {
		return nil, err
	}
	w := &Writer{c: c, bases: early, used: map[string]bool{}}
	if l.faults.basesFirst {
		return w, nil
	}
	if w.bases, err = l.bases(ctx, pins); err != nil {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUp)
		defer cancel()
		_ = w.Abort(ending) // it expires by itself
		return nil, err
	}
	return w, nil
}

// bases gives the committed ones of the pinned objects. One that is gone, or that
// this release does not understand, is no reason not to write: it is not used.
func (l *Log) bases(ctx context.Context, pins []string) ([]*Object, error) {
	var bases []*Object
	for _, p := range pins {
		o, err := l.Get(ctx, p)
		switch {
		case errors.Is(err, bucket.ErrNotExist), errors.Is(err, ErrDamaged), errors.Is(err, ErrNewer):
		case err != nil:
			return nil, err
		case o.State == Committed, o.State == Deleting && l.faults.useDeleting:
			bases = append(bases, o)
		}
	}
	return bases, nil
}

// ID is the id of the checkpoint to be.
func (w *Writer) ID() string { return w.c.obj.ID }

// Bases are the pinned checkpoints that are there: only their packs may be
// referred to. They are not to be changed.
func (w *Writer) Bases() []*Object { return w.bases }

// Context is done when the claim is lost (cause ErrRevoked), with Commit or
// Abort, or with the context that Begin was given.
func (w *Writer) Context() context.Context { return w.c.ctx }

// NewPack gives a key for Put that nobody has used.
func (w *Writer) NewPack() (string, error) {
	name, err := w.c.l.random()
	return PackRoot + w.ID() + "/" + name, err
}

// Put writes a pack durably under a key of NewPack or a declared one. A key is
// good for one call: after an error the pack may be there or come later, and
// another key is needed.
func (w *Writer) Put(ctx context.Context, key string, body []byte) error {
	if err := w.take(key); err != nil {
		return err
	}
	_, err := w.c.l.b.Put(ctx, key, body, bucket.Condition{Absent: true})
	if errors.Is(err, bucket.ErrCondition) {
		err = w.confirm(ctx, key, int64(len(body)), err)
	}
	if err != nil {
		return fmt.Errorf("refs: put %s: %w", key, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used[key] = true
	return nil
}

// take reserves a key for its one use.
func (w *Writer) take(key string) error {
	if owner, _ := Owner(key); owner != w.ID() {
		return fmt.Errorf("refs: put %s: not a key of %s", key, w.ID())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, again := w.used[key]; again {
		return fmt.Errorf("refs: put %s: the key was used before", key)
	}
	if !below(key, w.ID()) && !slices.Contains(w.c.obj.Packs, key) {
		return fmt.Errorf("refs: put %s: the key was not declared", key)
	}
	if w.c.ctx.Err() != nil {
		return fmt.Errorf("refs: put %s: %w", key, context.Cause(w.c.ctx))
	}
	w.used[key] = false
	return nil
}

// confirm looks for a pack whose Put was refused. Nobody else writes the key,
// so that it was our own Put, repeated after a lost answer.
func (w *Writer) confirm(ctx context.Context, key string, size int64, refused error) error {
	page, _, err := w.c.l.b.List(ctx, key, "", 1)
	if err != nil {
		return err
	}
	if len(page) == 1 && page[0].Key == key && page[0].Size == size {
		return nil
	}
	return refused
}

// Commit makes the checkpoint: it lists packs that Put has written and packs of
// Bases, in the caller's order, and carries the payload.
//
// nil means that it is committed, and an error that is ErrUnknown that this is
// open. After any other error it is not and never will be; if it is ErrRevoked
// the claim was lost. The writer has ended then, except when the arguments are
// refused or ctx had ended before: that leaves everything as it was.
func (w *Writer) Commit(ctx context.Context, packs []string, payload []byte) error {
	if err := w.check(packs); err != nil {
		return err
	}
	body, err := w.c.l.encode(&Object{ID: w.ID(), State: Committed, Packs: packs, Payload: payload, token: w.c.obj.token})
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("refs: commit %s: %w", w.ID(), err)
	}
	if !w.end() {
		return fmt.Errorf("refs: commit %s: the writer has ended", w.ID())
	}
	if cause := context.Cause(w.c.ctx); errors.Is(cause, ErrRevoked) {
		return fmt.Errorf("refs: commit %s: %w", w.ID(), cause)
	}
	defer w.c.lose(context.Canceled)
	return w.settle(ctx, body)
}

// check refuses packs that are not known to be there for the checkpoint to use.
func (w *Writer) check(packs []string) error {
	foreign := map[string]bool{}
	for _, b := range w.bases {
		for _, p := range b.Packs {
			foreign[p] = true
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range packs {
		if !w.used[p] && !foreign[p] {
			return fmt.Errorf("refs: commit %s: %s was neither written by it nor is it of a base", w.ID(), p)
		}
	}
	return nil
}

// end stops the renewal; false if that was done before.
func (w *Writer) end() bool {
	w.mu.Lock()
	ended := w.ended
	w.ended = true
	w.mu.Unlock()
	w.c.halt()
	return !ended
}

// Abort gives up: what was written is freed by a sweep. It does nothing after
// Commit. After an error the claim expires by itself.
func (w *Writer) Abort(ctx context.Context) error {
	if !w.end() {
		return nil
	}
	defer w.c.lose(context.Canceled)
	err := w.settle(ctx, nil)
	if errors.Is(err, ErrRevoked) || errors.Is(err, bucket.ErrNotExist) {
		return nil
	}
	return err
}

// settle replaces the object by the commit, or revokes it if there is none or it
// does not get through, until one of both is certain: only an answer tells, or
// the object itself. A commit without one is not given up before the object has
// another version, because it may still land.
func (w *Writer) settle(ctx context.Context, commit []byte) error {
	c := w.c
	revoked, err := c.l.revoked(&c.obj)
	if err != nil {
		return err
	}
	most, last := c.l.tries, error(nil)
	if commit != nil {
		most = 2 * c.l.tries
	}
	for left := most; left > 0; left-- {
		if left < most-1 && !c.l.pause(ctx, time.Second) {
			break
		}
		body, cond := commit, bucket.Condition{ETag: c.etag}
		if left <= c.l.tries {
			body = revoked
			if c.l.faults.failUnfenced && commit != nil {
				return fmt.Errorf("refs: commit %s: %w", w.ID(), last)
			}
		} else if c.l.faults.commitBlind {
			cond = bucket.Condition{}
		}
		_, err := c.l.b.Put(ctx, Prefix+w.ID(), body, cond)
		if err == nil {
			return w.settled(left > c.l.tries, last)
		}
		last = err
		if c.l.faults.refusedIsOK && errors.Is(err, bucket.ErrCondition) {
			return nil
		}
		if done, err := w.look(ctx); done {
			return err
		}
	}
	return fmt.Errorf("%w: %s: %w", ErrUnknown, w.ID(), last)
}

// settled is the result of a replacement that was answered.
func (w *Writer) settled(committed bool, last error) error {
	switch {
	case committed:
		return nil
	case last == nil: // asked to abort
		return ErrRevoked
	}
	return fmt.Errorf("refs: commit %s: given up: %w", w.ID(), last)
}

// look finds out what has become of the object: done if it is decided.
func (w *Writer) look(ctx context.Context) (done bool, err error) {
	o, etag, err := w.c.l.get(ctx, w.ID())
	switch {
	case errors.Is(err, bucket.ErrNotExist):
		return true, fmt.Errorf("%w: %s: %w", ErrUnknown, w.ID(), err)
	case err != nil:
		return false, err
	case !w.c.ours(o):
		return true, fmt.Errorf("%w: %s is another's", ErrUnknown, w.ID())
	case o.State == Committed, o.State == Deleting:
		return true, nil
	case o.State == Revoked:
		return true, fmt.Errorf("%w: %s", ErrRevoked, w.ID())
	}
	w.c.etag = etag // perhaps of a renewal whose answer was lost
	return false, nil
}
