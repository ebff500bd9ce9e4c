// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/keeper"
	"github.com/opencomputer/oc/internal/sandbox"
)

// keeperLink is the connection to the keeper, made when it is first needed and
// again when the keeper was lost.
type keeperLink struct {
	socket string
	start  func(context.Context) error

	lost atomic.Bool // the present keeper may lack what one that died held

	mu sync.Mutex
	c  *keeper.Client
}

// watch sees that there is a keeper for as long as ctx lasts: when it dies a
// new one is started, and refill hands it what the old one held.
func (k *keeperLink) watch(ctx context.Context, refill func(context.Context) error, log *slog.Logger) {
	for ctx.Err() == nil {
		c, err := k.client(ctx)
		if err == nil && k.lost.Swap(false) {
			if err = refill(ctx); err != nil {
				k.lost.Store(true)
			}
		}
		if err == nil {
			select {
			case <-c.Done():
				log.Error("the keeper died; starting another")
			case <-ctx.Done():
			}
			continue
		}
		if ctx.Err() == nil {
			log.Error("the keeper cannot be replaced; trying again", "error", err)
			select {
			case <-time.After(keeperRetry):
			case <-ctx.Done():
			}
		}
	}
}

// keeperRetry is how long to wait after a keeper could not be started.
const keeperRetry = time.Second

var _ sandbox.Keeper = (*keeperLink)(nil)

func (k *keeperLink) client(ctx context.Context) (*keeper.Client, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.c != nil {
		select {
		case <-k.c.Done():
			k.c.Close()
			k.c = nil
			k.lost.Store(true)
		default:
			return k.c, nil
		}
	}
	c, err := keeper.Ensure(ctx, k.socket, k.start)
	if err != nil {
		return nil, err
	}
	k.c = c
	return c, nil
}

// Put implements sandbox.Keeper.
func (k *keeperLink) Put(ctx context.Context, name string, files ...syscall.Conn) error {
	c, err := k.client(ctx)
	if err != nil {
		return err
	}
	return c.Put(ctx, name, files...)
}

// Get implements sandbox.Keeper.
func (k *keeperLink) Get(ctx context.Context, name string) ([]*os.File, error) {
	c, err := k.client(ctx)
	if err != nil {
		return nil, err
	}
	return c.Get(ctx, name)
}

// List implements sandbox.Keeper.
func (k *keeperLink) List(ctx context.Context) ([]string, error) {
	c, err := k.client(ctx)
	if err != nil {
		return nil, err
	}
	return c.List(ctx)
}

// Drop implements sandbox.Keeper.
func (k *keeperLink) Drop(ctx context.Context, name string) error {
	c, err := k.client(ctx)
	if err != nil {
		return err
	}
	return c.Drop(ctx, name)
}

// stop ends the keeper, which must hold nothing.
func (k *keeperLink) stop(ctx context.Context) error {
	c, err := k.client(ctx)
	if err != nil {
		return err
	}
	return c.Stop(ctx)
}

func (k *keeperLink) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.c != nil {
		k.c.Close()
		k.c = nil
	}
}
