// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/keeper"
)

// keeperEnv makes the test binary a keeper that serves the path in it.
const keeperEnv = "OC_TEST_NODE_KEEPER"

func TestMain(m *testing.M) {
	if path := os.Getenv(keeperEnv); path != "" {
		if keeper.Main(path, slog.New(slog.DiscardHandler)) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A keeper that takes another's place is given what that held until it has it:
// one failure is not the end of it.
func TestKeeperIsRefilledUntilItHasAll(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	socket := filepath.Join(t.TempDir(), "k")
	var mu sync.Mutex
	var started []*exec.Cmd
	link := &keeperLink{socket: socket, start: func(context.Context) error {
		c := exec.Command(os.Args[0])
		c.Env = []string{keeperEnv + "=" + socket}
		mu.Lock()
		defer mu.Unlock()
		started = append(started, c)
		return c.Start()
	}}
	kill := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range started {
			_ = c.Process.Kill() // gone is as good
			_ = c.Wait()
		}
		started = nil
	}
	var watching sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		watching.Wait()
		link.close()
		kill()
	})
	refills := make(chan struct{}, 100)
	errs := make(chan error, 1)
	errs <- errors.New("it is not there yet")
	if _, err := link.client(ctx); err != nil {
		t.Fatal(err)
	}
	watching.Go(func() {
		link.watch(ctx, func(context.Context) error {
			refills <- struct{}{}
			select {
			case err := <-errs:
				return err
			default:
				return nil
			}
		}, slog.New(slog.DiscardHandler))
	})
	kill()
	for i := range 2 {
		select {
		case <-refills:
		case <-time.After(20 * time.Second):
			t.Fatalf("it was refilled %d times", i)
		}
	}
}
