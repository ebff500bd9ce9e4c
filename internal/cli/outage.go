// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"time"

	"github.com/opencomputer/oc/client"
)

const (
	// defaultPatience is how long a connection is tried again after it was lost: enough
	// for a server to restart.
	defaultPatience = 30 * time.Second
	// settled is how long a new connection must last to end an outage when it
	// brings no output.
	settled = 5 * time.Second

	retryFirst = 100 * time.Millisecond
	retryMost  = time.Second
)

// outage is the time during which the server cannot be reached. The zero value
// is one that nobody waits for.
type outage struct {
	patience time.Duration // after which to give up
	since    time.Time
	pause    time.Duration
}

// wait pauses before the next attempt; false says that it is time to give up,
// or that ctx ended.
func (o *outage) wait(ctx context.Context) bool {
	if o.since.IsZero() {
		o.since, o.pause = time.Now(), retryFirst
	}
	if time.Since(o.since) >= o.patience || wait(ctx, o.pause) != nil {
		return false
	}
	o.pause = min(o.pause*2, retryMost)
	return true
}

// over says that the server is there again.
func (o *outage) over() { o.since = time.Time{} }

// retryable tells whether an error may go away when the server is back: no
// answer at all, or one that says "not now".
func retryable(err error) bool {
	var remote *client.Error
	if errors.As(err, &remote) {
		return remote.Status == 502 || remote.Status == 503 || remote.Status == 504
	}
	return err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}
