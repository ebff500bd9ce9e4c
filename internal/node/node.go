// SPDX-License-Identifier: Apache-2.0

// Package node puts a server together: it opens what the settings name, gives
// each package the others it needs, runs them, and ends them in order.
//
// This is the one place that knows every package; no package knows it but
// cmd/oc-node. Invariants: one server per data directory; what was opened is closed
// on every path; sandboxes run on when a node ends.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/agentbin"
	"github.com/opencomputer/oc/internal/api"
	"github.com/opencomputer/oc/internal/buildinfo"
	"github.com/opencomputer/oc/internal/catalog"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/engine/gvisor"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/store"
	v1 "github.com/opencomputer/oc/internal/store/v1"
	"github.com/opencomputer/oc/internal/template"
)

// Node is an opened data directory with everything on it.
type Node struct {
	places      places
	log         *slog.Logger
	lock        *os.File
	meta        *meta.DB
	engine      *gvisor.Driver
	keeper      *keeperLink
	store       *store.Store
	catalog     *catalog.Catalog
	ledger      *admission.Ledger
	sandboxes   *sandbox.Service
	checkpoints *checkpoint.Service // nil without the store
	limits      sandbox.Limits
}

// KeeperCommand is the subcommand of oc that is the keeper.
const KeeperCommand = "keeper"

// Open locks the data directory and opens what is in it. Nothing is changed
// there yet, and nothing runs.
func Open(ctx context.Context, s Settings, log *slog.Logger) (*Node, error) {
	n, err := OpenToKill(ctx, s, log)
	if err != nil {
		return nil, err
	}
	if err := n.openCheckpoints(ctx, s); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// OpenToKill is Open without the store, which may not answer, or be gone for good:
// of the node only KillAll and Close may be called.
func OpenToKill(ctx context.Context, s Settings, log *slog.Logger) (_ *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Invalid, "the server must run as root").WithHint("sudo oc serve")
	}
	agent, err := agentbin.Binary()
	if err != nil {
		return nil, err
	}
	n := &Node{places: placesOf(s.DataDir), log: log}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.lock, err = lockData(s.DataDir, lockPatience); err != nil {
		return nil, err
	}
	if n.meta, err = meta.Open(ctx, database(s), log); err != nil {
		return nil, err
	}
	if n.engine, err = gvisor.New(gvisor.Config{
		BuildsDir: n.places.in("engines"), DiskDir: n.places.in("disks"), RunDir: n.places.run,
		Cgroup: n.places.cgroup, BulkRate: int64(s.LoadRateMB) << 20, Reserve: int64(s.MemoryReserveMB) << 20, Log: log,
	}); err != nil {
		return nil, err
	}
	builder, err := template.New(s.DataDir, log)
	if err != nil {
		return nil, err
	}
	memory, err := n.engine.Memory()()
	if err != nil {
		return nil, err
	}
	n.limits = sandbox.DefaultLimits(memory.Total)
	n.ledger = admission.New(n.engine.Memory(), memory.Reserve(int64(s.MemoryReserveMB)<<20))
	if err := os.RemoveAll(n.places.in("uploads")); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if err := os.MkdirAll(n.places.in("uploads"), 0o700); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	n.keeper = &keeperLink{socket: n.places.keeperSocket(), start: n.startKeeper}
	n.catalog = catalog.New(n.meta, builder, agent, n.places.in("uploads"), log)
	n.sandboxes = sandbox.New(sandbox.Config{
		Meta: n.meta, Engine: n.engine, Keeper: n.keeper, Images: n.catalog, Limits: n.limits, Memory: n.ledger,
		PoolSize: s.Pool, Log: log,
	})
	return n, nil
}

// openCheckpoints opens the store and what is about it.
func (n *Node) openCheckpoints(ctx context.Context, s Settings) error {
	legacy, err := v1.OpenDir(n.places.in("checkpoints"))
	if err != nil {
		return err
	}
	where, err := storeConfig(s, n.places)
	if err != nil {
		return err
	}
	if n.store, err = store.Open(ctx, where, n.log); err != nil {
		return err
	}
	budget := int64(s.CaptureBudgetMB) << 20
	if budget == 0 {
		budget = int64(n.limits.MaxMemoryMB) << 20 / 4
	}
	n.checkpoints = checkpoint.New(checkpoint.Config{
		Meta: n.meta, Sandboxes: n.sandboxes, Engine: n.engine, Images: n.catalog, Store: n.store, Legacy: legacy, Memory: n.ledger, Budget: budget,
		Spool: n.places.in("uploads"), DataFree: func() (int64, error) { return freeSpace(n.places.data) }, Log: n.log,
	})
	return nil
}

// KeepBuild makes sure that a data directory has a copy of the running build, and
// gives its path. It needs no lock: copies are named by what is in them.
func KeepBuild(dataDir string) (string, error) {
	if err := makeData(dataDir); err != nil {
		return "", err
	}
	return gvisor.KeepBuild(placesOf(dataDir).in("engines"))
}

func database(s Settings) string {
	if s.Database != "" {
		return s.Database
	}
	return placesOf(s.DataDir).in("meta.db")
}

// startKeeper starts the keeper from the kept build, detached from this server.
func (n *Node) startKeeper(context.Context) error {
	logFile, err := os.OpenFile(n.places.in("keeper.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	defer logFile.Close()
	c := exec.Command(n.engine.BinaryPath(), KeeperCommand, "--socket", n.places.keeperSocket())
	c.Stdout, c.Stderr = logFile, logFile
	c.Env = []string{}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("node: starting the keeper: %w", err)
	}
	go func() { _ = c.Wait() }() // takes it from the process table if it ends before us
	if err := n.engine.Outside(c.Process.Pid); err != nil {
		return errors.Join(fmt.Errorf("node: starting the keeper: %w", err), c.Process.Kill())
	}
	return nil
}

// Serve adopts what runs and serves the API until ctx ends. ready is told the
// API's address when it answers.
func (n *Node) Serve(ctx context.Context, listen string, ready func(url string) error) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot listen on %s", listen).WithHint("choose another --listen")
	}
	defer l.Close()
	for _, start := range []func(context.Context) error{n.catalog.Start, n.checkpoints.Start, n.sandboxes.Start} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { n.keeper.watch(watchCtx, n.sandboxes.Rekeep, n.log) })
	watching.Go(func() { n.catalog.Collect(watchCtx) })
	defer watching.Wait()
	defer stopWatch()
	url := "http://" + l.Addr().String()
	key, err := n.signingKey()
	if err != nil {
		return err
	}
	server, err := api.New(api.Config{
		Sandboxes: n.sandboxes, Checkpoints: n.checkpoints, Storage: n.checkpoints, Templates: n.catalog, Keys: n.meta, Log: n.log,
		SigningKey: key, MaxCPUs: n.limits.MaxCPUs, MaxMemoryMB: n.limits.MaxMemoryMB,
		Version: buildinfo.Version(), APIURL: url, DataDir: n.places.data,
	})
	if err != nil {
		return err
	}
	web := server.HTTPServer()
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(l) }()
	inst := Instance{Version: buildinfo.Version(), APIURL: url, DataDir: n.places.data}
	// oc up waits for the instance: by then its user must have the key.
	if err := errors.Join(ready(url), inst.write()); err != nil {
		return errors.Join(err, web.Close())
	}
	n.log.Info("serving", "url", url, "version", buildinfo.Version(), "engine", buildinfo.Engine())
	select {
	case err := <-failed:
		return fmt.Errorf("node: serving: %w", err)
	case <-ctx.Done():
	}
	return n.shutdown(server, web)
}

// shutdownTimeout bounds how long requests in flight may take to end.
const shutdownTimeout = 20 * time.Second

func (n *Node) shutdown(server *api.Server, web *http.Server) error {
	n.log.Info("shutting down; sandboxes run on")
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	err := errors.Join(server.Shutdown(ctx), web.Shutdown(ctx))
	if errors.Is(err, context.DeadlineExceeded) {
		n.log.Warn("requests were cut off", "error", err)
		err = web.Close()
	}
	if e := os.Remove(n.places.in(instanceFile)); !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// Close ends the node; sandboxes run on.
func (n *Node) Close() {
	if n.checkpoints != nil {
		n.checkpoints.Close()
	}
	n.sandboxes.Close()
	n.close()
}

func (n *Node) close() {
	if n.keeper != nil {
		n.keeper.close()
	}
	if n.store != nil {
		n.store.Close()
	}
	var err error
	if n.meta != nil {
		err = n.meta.Close()
	}
	if n.lock != nil {
		err = errors.Join(err, n.lock.Close())
	}
	if err != nil {
		n.log.Error("closing", "error", err)
	}
}

// signingKey is the key of file URLs, made at the first start.
func (n *Node) signingKey() ([]byte, error) {
	path := n.places.in("signing.key")
	key, err := os.ReadFile(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key = make([]byte, 32)
	_, _ = rand.Read(key) // never fails (crypto/rand)
	return key, durable.WriteFile(path, key, 0o600)
}

// FirstKey makes an API key if there is none yet. It exists when show has been told
// of it: before, the next start makes another.
func (n *Node) FirstKey(ctx context.Context, show func(plain string)) error {
	count, err := n.meta.CountKeys(ctx)
	if err != nil || count > 0 {
		return err
	}
	return n.meta.InTx(ctx, func(tx *meta.DB) error {
		plain, _, err := tx.CreateKey(ctx, DefaultOrg, "first")
		if err == nil {
			show(plain)
		}
		return err
	})
}

// DefaultOrg is the org of the first key.
const DefaultOrg = "default"

// KillAll ends every sandbox, and the keeper. The node must not be serving.
func (n *Node) KillAll(ctx context.Context) (killed int, err error) {
	rows, err := n.meta.SandboxesAnyOrg(ctx, meta.SandboxRunning, meta.SandboxError)
	if err != nil {
		return 0, err
	}
	for _, sb := range rows {
		if e := n.sandboxes.Kill(ctx, sb.OrgID, sb.ID); e != nil {
			err = errors.Join(err, e)
			continue
		}
		killed++
	}
	left, e := n.engine.Leftovers()
	err = errors.Join(err, e)
	for _, id := range left {
		err = errors.Join(err, n.engine.DestroyGeneration(ctx, id), n.keeper.Drop(ctx, id))
	}
	if err == nil {
		err = n.keeper.stop(ctx)
		n.removeRun(ctx) // when the keeper has ended
		n.engine.Close()
	}
	return killed, err
}

// removeRun removes the run-time directory, when the keeper that was stopped
// has taken its socket away. If anything else is left, that stays visible.
func (n *Node) removeRun(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, keeperEnd)
	defer cancel()
	for ctx.Err() == nil {
		_ = os.Remove(n.places.keeperSocket() + ".lock") // nobody starts a keeper while we hold the data
		if err := os.Remove(n.places.run); err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
		select {
		case <-time.After(keeperPoll):
		case <-ctx.Done():
		}
	}
}

// keeperEnd bounds how long a keeper may take to end.
const (
	keeperEnd  = 2 * time.Second
	keeperPoll = 5 * time.Millisecond
)
