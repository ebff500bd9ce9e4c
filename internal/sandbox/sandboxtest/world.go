// SPDX-License-Identifier: Apache-2.0

package sandboxtest

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
)

// Patience bounds what a test waits for: a loaded machine is slow.
const Patience = time.Minute

// Keeper implements sandbox.Keeper in memory.
type Keeper struct {
	mu        sync.Mutex
	held      map[string]*os.File
	fail      error
	failDrops error
}

// Fail makes every call fail with err; nil ends that.
func (k *Keeper) Fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = err
}

// dup gives a file with a descriptor of its own.
func dup(c syscall.Conn) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(f uintptr) { fd, dupErr = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || dupErr != nil {
		return nil, errors.Join(err, dupErr)
	}
	return os.NewFile(uintptr(fd), "held"), nil
}

// Put implements sandbox.Keeper.
func (k *Keeper) Put(_ context.Context, name string, files ...syscall.Conn) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	f, err := dup(files[0])
	if err != nil {
		return err
	}
	if old := k.held[name]; old != nil {
		old.Close()
	}
	k.held[name] = f
	return nil
}

// Get implements sandbox.Keeper.
func (k *Keeper) Get(_ context.Context, name string) ([]*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil || k.held[name] == nil {
		return nil, k.fail
	}
	f, err := dup(k.held[name])
	return []*os.File{f}, err
}

// List implements sandbox.Keeper.
func (k *Keeper) List(context.Context) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.held)), k.fail
}

// FailDrops has Drop fail from now on, or for nil no more.
func (k *Keeper) FailDrops(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failDrops = err
}

// Drop implements sandbox.Keeper.
func (k *Keeper) Drop(_ context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := cmp.Or(k.fail, k.failDrops); err != nil {
		return err
	}
	if f := k.held[name]; f != nil {
		f.Close()
		delete(k.held, name)
	}
	return nil
}

// Clock is a clock that a test sets.
type Clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

// Now is the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

// Advance moves the time on.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// World is a node's metadata, keeper and engine, with services that come and
// go.
type World struct {
	Meta   *meta.DB
	Engine *Engine
	Keeper *Keeper
	Clock  *Clock
	Org    string
	Log    *slog.Logger
	image  string
}

// New makes a world, which ends with the test and must be empty by then but
// for what its services left on purpose.
func New(t testing.TB) *World {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	db, err := meta.Open(t.Context(), filepath.Join(dir, "meta.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := &World{Meta: db, Engine: NewEngine(filepath.Join(dir, "engines")), Keeper: &Keeper{held: map[string]*os.File{}},
		Clock: &Clock{}, Log: log, image: filepath.Join(dir, "image")}
	t.Cleanup(func() {
		if err := errors.Join(w.Engine.Close(), db.Close()); err != nil {
			t.Error(err)
		}
		for _, f := range w.Keeper.held {
			f.Close()
		}
	})
	org, err := db.EnsureOrg(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	w.Org = org.ID
	if err := os.WriteFile(w.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// Resolve implements sandbox.Images.
func (w *World) Resolve(ctx context.Context, _, name string, _ func(string)) (sandbox.Image, error) {
	img := sandbox.Image{Template: name, TreeHash: "tree", Hash: ImageHash, Path: w.image}
	return img, w.Meta.UpsertImage(ctx, &meta.Image{Hash: img.Hash, TreeHash: img.TreeHash})
}

// ImageHash is that of the one image, an empty file.
const ImageHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Path implements sandbox.Images.
func (w *World) Path(context.Context, string) (string, error) { return w.image, nil }

// Add implements sandbox.Images.
func (w *World) Add(context.Context, string, string, io.Reader) error {
	return errors.ErrUnsupported
}

// Config is that of a service of this world.
func (w *World) Config(t testing.TB) sandbox.Config {
	t.Helper()
	return sandbox.Config{
		Meta: w.Meta, Engine: w.Engine, Keeper: w.Keeper, Images: w, Limits: sandbox.DefaultLimits(8 << 30), Log: w.Log, Now: w.Clock.Now,
		RetryPause: 10 * time.Millisecond,
	}
}

// Empty demands that nothing of any generation is left: no row, process,
// directory or keeper entry.
func (w *World) Empty(t testing.TB) {
	t.Helper()
	w.Exactly(t)
}

// Exactly demands that just these generations exist, everywhere.
func (w *World) Exactly(t testing.TB, want ...string) {
	t.Helper()
	slices.Sort(want)
	left, err := w.Engine.Leftovers()
	if err != nil || !slices.Equal(left, want) && len(left)+len(want) > 0 {
		t.Errorf("engines of %v exist (%v), want %v", left, err, want)
	}
	held, err := w.Keeper.List(t.Context())
	if err != nil || !slices.Equal(held, want) && len(held)+len(want) > 0 {
		t.Errorf("the keeper holds %v (%v), want %v", held, err, want)
	}
	gens, err := w.Meta.Generations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, g := range gens {
		rows = append(rows, g.ID)
	}
	slices.Sort(rows)
	if !slices.Equal(rows, want) && len(rows)+len(want) > 0 {
		t.Errorf("rows of %v exist, want %v", rows, want)
	}
}

// SetState changes the state of a sandbox's running generation; GetState reads it.
func (w *World) SetState(t testing.TB, sandboxID, state string) {
	t.Helper()
	if err := os.WriteFile(w.stateFile(t, sandboxID), []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
}

// GetState reads the state of a sandbox's running generation.
func (w *World) GetState(t testing.TB, sandboxID string) string {
	t.Helper()
	b, err := os.ReadFile(w.stateFile(t, sandboxID))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (w *World) stateFile(t testing.TB, sandboxID string) string {
	t.Helper()
	sb, err := w.Meta.SandboxAnyOrg(t.Context(), sandboxID)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(w.Engine.Root(sb.GenerationID), State)
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(Patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("timed out waiting until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
