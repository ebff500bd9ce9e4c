// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"context"
	"fmt"
	"time"
)

// giveUp bounds how long what failed waits until its claim is taken back: who ends
// a server whose bucket is gone waits for it.
const giveUp = 10 * time.Second

// Lease keeps the packs of a checkpoint in the bucket while they are read, even
// if it is deleted meanwhile.
type Lease struct{ c *claim }

// Read takes a lease on a checkpoint and gives it. A lease is renewed until it
// is closed. Fails with ErrState if the object is not committed, with
// bucket.ErrNotExist if there is none.
func (l *Log) Read(ctx context.Context, id string) (*Lease, *Object, error) {
	if !ValidID(id) {
		return nil, nil, fmt.Errorf("refs: %q is not an id", id)
	}
	var early *Object
	if l.faults.readFirst {
		early, _, _ = l.get(ctx, id)
	}
	c, err := l.claim(ctx, Reading, []string{id}, nil)
	if err != nil {
		return nil, nil, err
	}
	lease := &Lease{c}
	o, err := l.Get(ctx, id)
	if early != nil {
		o, err = early, nil
	}
	if err == nil && o.State != Committed {
		err = fmt.Errorf("%w: %s is %s, not a checkpoint", ErrState, id, o.State)
	}
	if err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUp)
		defer cancel()
		_ = lease.Close(closing) // it expires by itself
		return nil, nil, err
	}
	return lease, o, nil
}

// Context is done when the lease is lost (cause ErrRevoked), when it is closed,
// or with the context that Read was given.
func (s *Lease) Context() context.Context { return s.c.ctx }

// Close gives the lease back. After an error it expires by itself. It may be
// called again.
func (s *Lease) Close(ctx context.Context) error {
	s.c.halt()
	s.c.lose(context.Canceled)
	if err := s.c.l.b.Delete(ctx, Prefix+s.c.obj.ID); err != nil {
		return fmt.Errorf("refs: close lease %s: %w", s.c.obj.ID, err)
	}
	return nil
}
