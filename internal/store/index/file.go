// SPDX-License-Identifier: Apache-2.0

package index

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/opencomputer/oc/internal/durable"
)

// errDamaged is the end of a file: whoever meets it makes a new one.
var (
	errDamaged  = errors.New("damaged")
	errPanicked = fmt.Errorf("%w: panic", errDamaged)
	errClosed   = errors.New("closed")
)

// The buckets of the file.
var (
	packsBucket  = []byte("packs")  // number → sum, name length, name, pages, table; its sequence is the last number
	runsBucket   = []byte("runs")   // run → sum, entries; its sequence is the last run
	blocksBucket = []byte("blocks") // see block
)

// format changes with the layout; a file of another one is made anew.
const format = "1"

// The file is never synced but by Close, so only what the same boot has written,
// or what was closed, is sound: a power cut may have left any mixture of pages,
// and a damaged page tree can make bbolt run in circles, beyond any recover.
// The mark beside the file tells.
const (
	markSuffix = ".mark"
	markClosed = "closed"
	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// lockPatience is how long Open tries while another process has the file.
const lockPatience = time.Second

// mark is what the mark says while a process of this boot has the file open.
func mark(state string) []byte { return []byte("opencomputer index " + format + " " + state + "\n") }

func bootID() (string, error) {
	id, err := os.ReadFile(bootIDFile)
	return strings.TrimSpace(string(id)), err
}

// open opens the file, or makes a new one of whatever is there.
func (ix *Index) open() error {
	found, err := os.ReadFile(ix.path + markSuffix)
	if err != nil || (string(found) != string(mark(markClosed)) && string(found) != string(mark(ix.boot))) {
		return ix.renew()
	}
	err = guard(func() error {
		if err := ix.openDB(); err != nil {
			return err
		}
		return ix.load()
	})
	if err == nil {
		return ix.putMark(ix.boot)
	}
	if errors.Is(err, berrors.ErrTimeout) {
		return err
	}
	ix.log.Warn("the page index is lost and begins empty", "path", ix.path, "err", err)
	ix.abandon(err)
	return ix.renew()
}

// renew replaces the file by an empty one. The numbers of packs go on where
// they were: a Location that somebody still holds never means another pack.
func (ix *Index) renew() error {
	last := ix.lastPack
	ix.state = newState()
	ix.lastPack = last
	if err := os.Remove(ix.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return guard(func() error {
		if err := ix.openDB(); err != nil {
			return err
		}
		if err := ix.putMark(ix.boot); err != nil {
			return err
		}
		return ix.db.Update(func(tx *bbolt.Tx) error {
			for _, name := range [][]byte{packsBucket, runsBucket, blocksBucket} {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return tx.Bucket(packsBucket).SetSequence(uint64(last))
		})
	})
}

func (ix *Index) openDB() error {
	db, err := bbolt.Open(ix.path, 0o600, &bbolt.Options{
		Timeout:      lockPatience,
		NoSync:       true,
		NoGrowSync:   true,
		FreelistType: bbolt.FreelistMapType, // runs are long
	})
	if err != nil {
		return err
	}
	ix.db = db
	return nil
}

// abandon lets go of a file that met the error. After a panic bbolt may hold its
// own locks for good: what it has mapped then stays until the process ends.
func (ix *Index) abandon(err error) {
	if ix.db != nil && !errors.Is(err, errPanicked) {
		_ = ix.db.Close() // what it holds is given up anyway
	}
	ix.db = nil
}

// putMark writes the mark, durably.
func (ix *Index) putMark(state string) error {
	return durable.WriteFile(ix.path+markSuffix, mark(state), 0o600)
}

// guard turns a panic into an error that is errDamaged and errPanicked: bbolt
// trusts its file, and reads it through memory that can fault.
func guard(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanicked, r)
		}
	}()
	return do()
}

// ready tells whether there is a file, and makes one if that has failed before.
func (ix *Index) ready() error {
	if ix.closed {
		return errClosed
	}
	if ix.db != nil {
		return nil
	}
	err := ix.renew()
	if err != nil {
		ix.abandon(err)
	}
	return err
}

// giveUp replaces a file that met the error by an empty one.
func (ix *Index) giveUp(cause error) error {
	ix.log.Warn("the page index is lost and begins empty", "path", ix.path, "err", cause)
	ix.abandon(cause)
	ix.renewals++
	return ix.ready()
}
