// SPDX-License-Identifier: Apache-2.0

// Package dir is a bucket in a directory. An object is a file of that path.
//
//	<root>/<key>           an object; its version is in an extended attribute
//	<root>/.tmp/<writer>/  what a Bucket is writing, locked while it lives
//	<root>/.lock           byte 0: Exclude; the others: writes of one key each
//
// Invariants: an object appears by link or rename of a complete file, durable
// unless it is volatile; all that changes one key (link, rename, unlink) does so
// under that key's lock, so that a condition and its write are one step, in all
// processes; conditional writes moreover share the lock of Exclude. All locks
// are the kernel's and end with the process that holds them.
//
// The file system needs links, open file description locks and no more:
// versions are hashes of the content, and where there are no extended
// attributes, or a copy has lost them, the content is read.
//
// The package must not know what objects mean.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/durable"
)

// Bucket is a bucket in a directory; it implements bucket.Bucket,
// bucket.Excluder and bucket.Spacer. Errors of a full disk are unix.ENOSPC or
// unix.EDQUOT, and leave nothing.
type Bucket struct {
	root  string
	disk  durable.Disk
	temp  *tempDir
	names atomic.Int64 // of temporary files
	files openFiles
	sweep sweepLock

	mu   sync.Mutex
	made map[string]bool // guarded by mu: directories known to be durable
}

var (
	_ bucket.Bucket   = (*Bucket)(nil)
	_ bucket.Excluder = (*Bucket)(nil)
	_ bucket.Spacer   = (*Bucket)(nil)
)

// Open opens or makes the bucket in a directory and removes what writers that
// are gone have left unfinished.
func Open(root string, disk durable.Disk) (*Bucket, error) {
	root = filepath.Clean(root)
	b := &Bucket{root: root, disk: disk, made: map[string]bool{}}
	b.sweep.path = filepath.Join(root, lockName)
	if err := disk.MkdirAll(filepath.Join(root, tempName), 0o700); err != nil {
		return nil, fmt.Errorf("bucket: %w", err)
	}
	lock, err := os.OpenFile(b.sweep.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = lock.Close()
	}
	if err == nil {
		err = sweepTemp(filepath.Join(root, tempName))
	}
	if err == nil {
		b.temp, err = makeTemp(filepath.Join(root, tempName))
	}
	if err != nil {
		return nil, fmt.Errorf("bucket: %w", err)
	}
	return b, nil
}

// Close gives back what the Bucket holds open. Nothing may be called after it.
func (b *Bucket) Close() error {
	b.files.close()
	return b.temp.close()
}

// Free is the number of bytes that the disk under the bucket has left.
func (b *Bucket) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(b.root, &st); err != nil {
		return 0, fmt.Errorf("bucket: %s: %w", b.root, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body []byte, cond bucket.Condition) (string, error) {
	if err := bucket.CheckPut(key, body, cond); err != nil {
		return "", err
	}
	etag := hash(body)
	tmp := filepath.Join(b.temp.path, strconv.FormatInt(b.names.Add(1), 10))
	defer os.Remove(tmp)
	err := b.diskOf(cond).Create(tmp, 0o600, func(f *os.File) error { return write(ctx, f, body, etag) })
	if err == nil {
		err = b.publish(ctx, tmp, key, cond)
	}
	if err != nil {
		return "", fmt.Errorf("bucket: writing %s: %w", key, err)
	}
	return etag, nil
}

// disk is the part of durable.Disk that makes objects.
type disk interface {
	Create(path string, mode fs.FileMode, fill func(*os.File) error) error
	Link(old, new string) error
	Rename(old, new string) error
}

func (b *Bucket) diskOf(cond bucket.Condition) disk {
	if cond.Volatile {
		return volatileDisk{}
	}
	return b.disk
}

// writeChunk is how much is written between looks at the context.
const writeChunk = 1 << 20

// write fills a new file. The kernel writes back meanwhile, so that little is
// left for the sync.
func write(ctx context.Context, f *os.File, body []byte, etag string) error {
	if len(body) > 0 { // say "no space" now rather than in the middle
		if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(len(body))); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	for off := 0; off < len(body); off += writeChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk := body[off:min(off+writeChunk, len(body))]
		if _, err := f.Write(chunk); err != nil {
			return err
		}
		if len(body) > writeChunk {
			_ = unix.SyncFileRange(int(f.Fd()), int64(off), int64(len(chunk)), unix.SYNC_FILE_RANGE_WRITE) // a hint
		}
	}
	return setETag(f, etag)
}

// publish makes the temporary file the object if the condition holds.
func (b *Bucket) publish(ctx context.Context, tmp, key string, cond bucket.Condition) error {
	if cond.Absent || cond.ETag != "" {
		unlock, err := b.sweep.share(ctx)
		if err != nil {
			return err
		}
		defer unlock()
	}
	unlock, err := b.lockKey(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	path := b.path(key)
	if cond.ETag != "" {
		if err := holds(path, cond.ETag); err != nil {
			return err
		}
	}
	// A Delete may remove the directory before the file is in it: once more.
	for {
		err := b.prepare(filepath.Dir(path))
		if err == nil {
			place := b.diskOf(cond).Rename
			if cond.Absent {
				place = b.diskOf(cond).Link
			}
			err = place(tmp, path)
		}
		switch {
		case err == nil:
			return nil
		case cond.Absent && errors.Is(err, fs.ErrExist):
			return bucket.ErrCondition
		case !errors.Is(err, fs.ErrNotExist):
			b.prune(path)
			return err
		}
		if _, gone := os.Lstat(tmp); gone != nil {
			return gone
		}
		b.forget(filepath.Dir(path))
	}
}

// holds gives bucket.ErrCondition unless the object is of that version.
func holds(path, want string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return bucket.ErrCondition
	}
	if err != nil {
		return err
	}
	defer f.Close()
	etag, err := etagOf(f)
	if err == nil && etag != want {
		err = bucket.ErrCondition
	}
	return err
}

// prepare makes a directory of keys. One that another call or process has just
// made may not be durable yet, so the first time all up to the root is synced.
func (b *Bucket) prepare(dir string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.made[dir] || dir == b.root {
		return nil
	}
	if err := b.disk.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for d := dir; d != b.root; {
		d = filepath.Dir(d)
		if err := b.disk.SyncDir(d); err != nil {
			return err
		}
	}
	if len(b.made) >= maxMade {
		clear(b.made)
	}
	b.made[dir] = true
	return nil
}

// maxMade bounds the directories that a Bucket remembers.
const maxMade = 4096

// forget makes the next prepare look again, at the directories above too.
func (b *Bucket) forget(dir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ; dir != b.root; dir = filepath.Dir(dir) {
		delete(b.made, dir)
	}
}

// prune removes the directories above a path that are empty now.
func (b *Bucket) prune(path string) {
	for dir := filepath.Dir(path); dir != b.root; dir = filepath.Dir(dir) {
		b.forget(dir)
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(_ context.Context, key string) ([]byte, string, error) {
	f, err := b.open(key)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Size() > bucket.MaxObject {
		err = fmt.Errorf("it is of %d bytes", st.Size())
	}
	var body []byte
	if err == nil {
		body = make([]byte, st.Size())
		_, err = io.ReadFull(f, body)
	}
	var etag string
	if err == nil {
		etag, err = etagOf(f)
	}
	if err != nil {
		return nil, "", fmt.Errorf("bucket: reading %s: %w", key, err)
	}
	return body, etag, nil
}

// ReadAt implements bucket.Bucket.
func (b *Bucket) ReadAt(_ context.Context, key string, p []byte, off int64) error {
	n, err := b.files.readAt(key, b.open, p, off)
	switch {
	case err == nil, n == len(p) && n > 0:
		return nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("bucket: reading %s: %w", key, err)
}

// open opens an object for reading.
func (b *Bucket) open(key string) (*os.File, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, err
	}
	f, err := os.Open(b.path(key))
	if missing(err) {
		return nil, fmt.Errorf("bucket: %s: %w", key, bucket.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("bucket: %w", err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("bucket: %s: %w", key, bucket.ErrNotExist)
	}
	return f, nil
}

// Delete implements bucket.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	path := b.path(key)
	if st, err := os.Lstat(path); missing(err) || err == nil && st.IsDir() {
		return nil
	}
	unlock, err := b.lockKey(ctx, key)
	if err == nil {
		err = b.disk.Remove(path)
		unlock()
		b.files.forget(key)
	}
	if err != nil && !missing(err) {
		return fmt.Errorf("bucket: deleting %s: %w", key, err)
	}
	b.prune(path)
	return nil
}

// path is where an object is.
func (b *Bucket) path(key string) string { return filepath.Join(b.root, key) }

// missing tells whether err says that a path leads to nothing.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}
