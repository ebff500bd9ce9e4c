// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
)

// DefaultTTL is the time after which the claim of a server that has died may be
// revoked.
const DefaultTTL = 5 * time.Minute

// tries is how often a request is repeated whose effect must be known. The
// bucket's own client has repeated it before.
const tries = 3

// Config of a Log. The zero value is ready for use.
type Config struct {
	Clock  func() time.Time // time.Now if nil; wrong ones cost claims, never data
	Random io.Reader        // crypto/rand.Reader if nil; used by many goroutines
	TTL    time.Duration    // of claims, renewed in a third of it; DefaultTTL if 0

	// Roots are the prefixes below which an audit looks for packs, PackRoot aside:
	// "engines/", "images/".
	Roots []string
}

// Log is the objects below ckpt/ of a bucket. It may be used by many goroutines,
// and any number of Logs by as many processes on one bucket.
type Log struct {
	b      bucket.Bucket
	cfg    Config
	tries  int
	room   int // bytes that the cache may take
	pause  func(context.Context, time.Duration) bool
	faults faults // none, outside of this package's tests

	mu    sync.Mutex
	cache map[string]cached // by key: what the last sweep has read
}

// ErrState says that an object is not in the state that a call asks for.
var ErrState = errors.New("refs: not possible in the object's state")

// New gives the Log of a bucket.
func New(b bucket.Bucket, cfg Config) *Log {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	return &Log{b: b, cfg: cfg, tries: tries, room: cacheBytes, pause: pause}
}

// Get gives an object in whatever state it is: bucket.ErrNotExist if there is
// none, ErrDamaged or ErrNewer if it is not understood.
func (l *Log) Get(ctx context.Context, id string) (*Object, error) {
	o, _, err := l.get(ctx, id)
	return o, err
}

// get also gives the version.
func (l *Log) get(ctx context.Context, id string) (*Object, string, error) {
	if !ValidID(id) {
		return nil, "", fmt.Errorf("refs: %q is not an id", id)
	}
	body, etag, err := l.b.Get(ctx, Prefix+id)
	if err != nil {
		return nil, "", fmt.Errorf("refs: get %s: %w", id, err)
	}
	o, err := decode(id, body)
	return o, etag, err
}

// List calls visit with every object in the order of their ids. For one that is
// not understood (ErrDamaged, ErrNewer) o has the ID alone, as far as it goes,
// and err says why. An error of visit ends the list and is returned.
func (l *Log) List(ctx context.Context, visit func(o *Object, err error) error) error {
	return l.walk(ctx, Prefix, func(e bucket.Object) error {
		body, _, err := l.b.Get(ctx, e.Key)
		if errors.Is(err, bucket.ErrNotExist) {
			return nil // gone since
		}
		if err != nil {
			return fmt.Errorf("refs: get %s: %w", e.Key, err)
		}
		id := strings.TrimPrefix(e.Key, Prefix)
		o, err := decode(id, body)
		if err != nil {
			o = &Object{ID: id}
		}
		return visit(o, err)
	})
}

// walk lists a prefix page after page, and fails when the order is not
// ascending: the rules rest on it.
func (l *Log) walk(ctx context.Context, prefix string, visit func(bucket.Object) error) error {
	for after := ""; ; {
		page, more, err := l.page(ctx, prefix, after)
		if err != nil {
			return err
		}
		for _, e := range page {
			if err := visit(e); err != nil {
				return err
			}
			after = e.Key
		}
		if !more {
			return nil
		}
	}
}

// page gives one page of a list, checked.
func (l *Log) page(ctx context.Context, prefix, after string) ([]bucket.Object, bool, error) {
	page, more, err := l.b.List(ctx, prefix, after, 0)
	if err != nil {
		return nil, false, fmt.Errorf("refs: list %s: %w", prefix, err)
	}
	if more && len(page) == 0 {
		return nil, false, fmt.Errorf("refs: list %s: an empty page that is not the last", prefix)
	}
	for _, e := range page {
		if e.Key <= after || !strings.HasPrefix(e.Key, prefix) {
			return nil, false, fmt.Errorf("refs: list %s: %s comes after %s", prefix, e.Key, after)
		}
		after = e.Key
	}
	return page, more, nil
}

// Delete makes that a checkpoint cannot be used any more; its packs are freed
// by a sweep. Deleting what is deleted or gone is no error. A write that has
// expired is revoked; one that has not, or a lease, is ErrState. A damaged object
// goes at once, and what only it listed is freed by an audit; while somebody pins
// it, that is ErrState too.
func (l *Log) Delete(ctx context.Context, id string) error {
	var last error
	for range l.tries {
		o, etag, err := l.get(ctx, id)
		if errors.Is(err, bucket.ErrNotExist) {
			return nil
		}
		if errors.Is(err, ErrDamaged) {
			if last = l.Drop(ctx, id); last == nil || errors.Is(last, ErrState) {
				return last
			}
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case o.State == Deleting || o.State == Revoked:
			return nil
		case o.State == Committed:
			last = l.delete(ctx, o, etag)
		case o.State == Writing && l.expired(o):
			last = l.revoke(ctx, o, etag)
		case o.State == Writing:
			return fmt.Errorf("%w: %s is being written (its claim expires %s)", ErrState, id, o.Expiry.Format(time.RFC3339))
		default:
			return fmt.Errorf("%w: %s is a reader's lease", ErrState, id)
		}
		if last == nil {
			return nil
		}
	}
	return fmt.Errorf("refs: delete %s: %w", id, last)
}

// delete turns a committed object to a deleted one, which keeps its packs' keys.
func (l *Log) delete(ctx context.Context, o *Object, etag string) error {
	body, err := l.encode(&Object{ID: o.ID, State: Deleting, Packs: o.Packs, token: o.token})
	if err != nil {
		return err
	}
	_, err = l.b.Put(ctx, Prefix+o.ID, body, bucket.Condition{ETag: etag})
	return err
}

// Drop removes an object that is damaged, and no other. It cannot say any more what
// it listed, so nobody may rely on that: whoever began before it was damaged has a
// claim by now, which pins it (ErrState); and whoever begins later does not understand
// it.
func (l *Log) Drop(ctx context.Context, id string) error {
	if e, ok := l.b.(bucket.Excluder); ok {
		release, err := e.Exclude(ctx)
		if err != nil {
			return fmt.Errorf("refs: delete %s: %w", id, err)
		}
		defer release()
	}
	err := l.walk(ctx, Prefix, func(e bucket.Object) error {
		if e.Key <= Prefix+id { // what pins it has a later id
			return nil
		}
		return l.unpinned(ctx, strings.TrimPrefix(e.Key, Prefix), id)
	})
	if err != nil {
		return err
	}
	if _, _, err := l.get(ctx, id); !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("refs: delete %s: it is not damaged any more: %w", id, cmp.Or(err, bucket.ErrCondition))
	}
	if err := l.b.Delete(ctx, Prefix+id); err != nil {
		return fmt.Errorf("refs: delete %s: %w", id, err)
	}
	return nil
}

// unpinned is ErrState while the object of a claim pins an id. An expired one is
// revoked.
func (l *Log) unpinned(ctx context.Context, claim, id string) error {
	if !ValidID(claim) {
		return nil // nobody's
	}
	o, etag, err := l.get(ctx, claim)
	switch {
	case errors.Is(err, bucket.ErrNotExist), errors.Is(err, ErrDamaged): // another checkpoint: claims do not get old
		return nil
	case err != nil:
		return err
	case !slices.Contains(o.Pins, id):
		return nil
	case l.expired(o):
		return l.revoke(ctx, o, etag)
	}
	return fmt.Errorf("%w: %s is damaged, and %s relies on it (%s until %s)", ErrState, id, claim, o.State, o.Expiry.Format(time.RFC3339))
}

// revoke ends a claim; it lives until this has succeeded.
func (l *Log) revoke(ctx context.Context, o *Object, etag string) error {
	body, err := l.revoked(o)
	if err != nil {
		return err
	}
	cond := bucket.Condition{ETag: etag}
	if l.faults.revokeBlind {
		cond = bucket.Condition{}
	}
	_, err = l.b.Put(ctx, Prefix+o.ID, body, cond)
	return err
}

// revoked gives the body of a claim's end.
func (l *Log) revoked(o *Object) ([]byte, error) {
	r := &Object{ID: o.ID, State: Revoked, Packs: o.Packs, token: o.token}
	if l.faults.undeclared {
		r.Packs = nil
	}
	return l.encode(r)
}

// expired tells whether anybody may revoke a claim.
func (l *Log) expired(o *Object) bool { return l.cfg.Clock().After(o.Expiry) }
