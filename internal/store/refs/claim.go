// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
)

// ErrRevoked says that a claim has ended: it had expired by somebody's clock, or
// its object was replaced.
var ErrRevoked = errors.New("refs: the claim was revoked")

// claim is an object of ours that is kept from expiring.
type claim struct {
	l        *Log
	obj      Object // as it was created
	volatile bool   // a reader's: a power cut ends the reader too
	etag     string // of the last version known; the renewal's until halt has returned

	ctx  context.Context // the holder's work
	lose context.CancelCauseFunc
	stop context.CancelFunc // ends the renewal
	done chan struct{}      // it has ended
}

// claim creates an object under a new id and starts to renew it. declare, which
// may be nil, names the packs outside of packs/<id>/ that will be written.
func (l *Log) claim(ctx context.Context, state State, pins []string, declare func(id string) []string) (*claim, error) {
	var last error
	for range l.tries {
		c := &claim{l: l, volatile: state == Reading, done: make(chan struct{})}
		id, err := l.newID(pins)
		if err != nil {
			return nil, err
		}
		token, err := l.random()
		if err != nil {
			return nil, err
		}
		c.obj = Object{ID: id, State: state, Pins: pins, token: token}
		if declare != nil {
			c.obj.Packs = declare(id)
		}
		body, err := c.body()
		if err != nil {
			return nil, err
		}
		if last = c.create(ctx, body); errors.Is(last, errAway) {
			break // the next would wait as long
		}
		if last != nil {
			continue // what may still land expires; an id is used once
		}
		c.ctx, c.lose = context.WithCancelCause(ctx)
		var renewing context.Context
		renewing, c.stop = context.WithCancel(context.WithoutCancel(ctx))
		go c.renew(renewing)
		return c, nil
	}
	return nil, fmt.Errorf("refs: create %s object: %w", state, last)
}

// errAway says that the bucket answers neither a write nor a read.
var errAway = errors.New("no answer")

// create is successful only if the object is seen to be ours.
func (c *claim) create(ctx context.Context, body []byte) error {
	cond := bucket.Condition{Absent: !c.l.faults.createBlind, Volatile: c.volatile}
	etag, err := c.l.b.Put(ctx, Prefix+c.obj.ID, body, cond)
	if err != nil {
		o, found, gerr := c.l.get(ctx, c.obj.ID)
		switch {
		case errors.Is(gerr, bucket.ErrNotExist), errors.Is(gerr, ErrDamaged), errors.Is(gerr, ErrNewer):
			return err
		case gerr != nil:
			return fmt.Errorf("%w: %w", errAway, err)
		}
		if o.State != c.obj.State || !c.ours(o) {
			return fmt.Errorf("%s is another's: %w", o.ID, err)
		}
		etag = found
	}
	c.etag = etag
	return nil
}

// ours tells whether an object was made by this claim, in whatever state.
func (c *claim) ours(o *Object) bool { return o.token == c.obj.token || c.l.faults.tokenIgnored }

// body gives a new version of the object.
func (c *claim) body() ([]byte, error) {
	o := c.obj
	o.Expiry = c.l.cfg.Clock().Add(c.l.cfg.TTL)
	return c.l.encode(&o)
}

// renew runs until it is stopped or the claim is lost.
func (c *claim) renew(ctx context.Context) {
	defer close(c.done)
	for wait := c.l.cfg.TTL / 3; c.l.pause(ctx, wait); {
		switch err := c.renewOnce(ctx); {
		case err == nil:
			wait = c.l.cfg.TTL / 3
		case errors.Is(err, ErrRevoked):
			c.lose(err)
			return
		default: // until somebody revokes it, it lives
			wait = c.l.cfg.TTL / 12
		}
	}
}

// renewOnce gives the object a new expiry. ErrRevoked is for good.
func (c *claim) renewOnce(ctx context.Context) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	etag, err := c.l.b.Put(ctx, Prefix+c.obj.ID, body, bucket.Condition{ETag: c.etag, Volatile: c.volatile})
	if err == nil {
		c.etag = etag
		return nil
	}
	o, etag, gerr := c.l.get(ctx, c.obj.ID)
	switch {
	case errors.Is(gerr, bucket.ErrNotExist):
		return fmt.Errorf("%w: %s is gone", ErrRevoked, c.obj.ID)
	case gerr != nil:
		return gerr
	case c.l.faults.renewAny:
	case o.State != c.obj.State || !c.ours(o):
		return fmt.Errorf("%w: %s is %s", ErrRevoked, c.obj.ID, o.State)
	}
	c.etag = etag // the answer to one of our own renewals was lost
	return err
}

// halt ends the renewal; the version is the caller's from then on. A renewal
// under way may still take effect.
func (c *claim) halt() {
	c.stop()
	<-c.done
}

// pause waits; false means that ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
