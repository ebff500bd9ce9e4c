// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

const (
	lockName  = ".lock"
	sweepByte = 0 // of the lock file
)

// sweepLock is the lock that Exclude has alone and conditional Puts share. A
// Bucket that has it alone lends it to its own Puts.
type sweepLock struct {
	path string

	mu      sync.Mutex
	holding chan struct{} // guarded by mu: closed while the Bucket holds it alone; nil is open
	lent    *sync.WaitGroup
}

// Exclude implements bucket.Excluder.
func (b *Bucket) Exclude(ctx context.Context) (func(), error) {
	release, err := b.sweep.alone(ctx)
	if err != nil {
		return nil, fmt.Errorf("bucket: waiting for its lock: %w", err)
	}
	return release, nil
}

// alone waits for the lock.
func (l *sweepLock) alone(ctx context.Context) (release func(), err error) {
	unlock, err := lock(ctx, l.path, unix.F_WRLCK, sweepByte, nil)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holding == nil {
		l.holding = make(chan struct{})
	}
	close(l.holding)
	l.lent = new(sync.WaitGroup)
	return sync.OnceFunc(func() {
		l.mu.Lock()
		l.holding = nil
		lent := l.lent
		l.lent = nil
		l.mu.Unlock()
		lent.Wait()
		unlock()
	}), nil
}

// share waits for a share of the lock, or for this Bucket to have it alone,
// which is as good.
func (l *sweepLock) share(ctx context.Context) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if lent := l.lent; lent != nil {
			lent.Add(1)
			l.mu.Unlock()
			return lent.Done, nil
		}
		if l.holding == nil {
			l.holding = make(chan struct{})
		}
		holding := l.holding
		l.mu.Unlock()
		unlock, err := lock(ctx, l.path, unix.F_RDLCK, sweepByte, holding)
		if !errors.Is(err, errAbandoned) {
			return unlock, err
		}
	}
}

// lockKey waits until no other call or process changes the key. (Two keys may
// share a lock; nobody holds two.)
func (b *Bucket) lockKey(ctx context.Context, key string) (unlock func(), err error) {
	at := int64(xxh3.HashString(key)%(math.MaxInt64-1)) + 1
	return lock(ctx, b.sweep.path, unix.F_WRLCK, at, nil)
}

// errAbandoned says that a lock is no longer wanted.
var errAbandoned = errors.New("abandoned")

// lock waits for a lock of a byte of the file, of the kind given, until the
// context ends or abandon is closed. The lock belongs to an open file, not to
// the process, so that it holds between goroutines too.
func lock(ctx context.Context, path string, kind int16, at int64, abandon <-chan struct{}) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	closeFile := func() { f.Close() }
	err = fcntl(f, unix.F_OFD_SETLK, kind, at)
	if err == nil {
		return closeFile, nil
	}
	if !errors.Is(err, unix.EAGAIN) {
		f.Close()
		return nil, err
	}
	// The kernel's wait cannot be given up, so it has a goroutine of its own; one
	// that nobody waits for any more ends when it has the lock.
	got := make(chan error)
	givenUp := make(chan struct{})
	go func() {
		err := fcntl(f, unix.F_OFD_SETLKW, kind, at)
		select {
		case got <- err:
		case <-givenUp:
			f.Close()
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, err
		}
		return closeFile, nil
	case <-abandon:
		err = errAbandoned
	case <-ctx.Done():
		err = ctx.Err()
	}
	close(givenUp)
	return nil, err
}

// fcntl locks one byte of a file.
func fcntl(f *os.File, cmd int, kind int16, at int64) error {
	for {
		err := unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: at, Len: 1})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

const tempName = ".tmp"

// tempDir is where a Bucket writes its temporary files. It is locked while the
// Bucket lives.
type tempDir struct {
	path string
	lock *os.File
}

// makeTemp makes and locks a new directory below parent.
func makeTemp(parent string) (*tempDir, error) {
	for {
		path, err := os.MkdirTemp(parent, "")
		if err != nil {
			return nil, err
		}
		lock, err := lockTemp(path, 0)
		if err == nil {
			return &tempDir{path, lock}, nil
		}
		// A sweep of another process came between.
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, os.RemoveAll(path))
		}
	}
}

// lockTemp locks a temporary directory, which fails with fs.ErrNotExist when
// it is gone.
func lockTemp(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|how)
	}
	if err == nil {
		_, err = os.Stat(path) // its name is never used again
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// close removes the directory.
func (d *tempDir) close() error {
	return errors.Join(os.RemoveAll(d.path), d.lock.Close())
}

// sweepTemp removes the temporary directories whose writers are gone.
func sweepTemp(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		lock, err := lockTemp(path, unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = os.RemoveAll(path)
		lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
