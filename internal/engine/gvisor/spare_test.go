// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// inMemory is how much memory a file has.
func inMemory(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// later lets a time pass, and what is to be done in it be done.
func later(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// What is wanted is there after a while, once, for who has use of it.
func TestSpareIsReadyForWhoHasUseOfIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const bytes = 3*spareStep + 4096
		var s spare
		defer s.close()
		s.want(1) // not any more
		s.want(bytes)
		if f := s.take(true); f != nil {
			t.Error("there is some at once")
		}
		later(spareDelay)
		if f := s.take(false); f != nil {
			t.Error("who has no use of it gets it")
		}
		f := s.take(true)
		if f == nil {
			t.Fatal("there is none")
		}
		defer f.Close()
		if got := inMemory(t, f); got != bytes {
			t.Errorf("%d bytes are there, want %d", got, bytes)
		}
		if s.take(true) != nil {
			t.Error("it is given twice")
		}
	})
}

// Nobody has it for long, and there is never much of it.
func TestSpareIsGivenBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bytes int64
		wait  time.Duration
		close bool
		there bool
	}{
		"in time":           {spareMost, spareTime - time.Second, false, true},
		"nobody came":       {4096, spareTime, false, false},
		"too much":          {spareMost + 1, 0, false, false},
		"nothing":           {0, 0, false, false},
		"closed when there": {4096, 0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s spare
				defer s.close()
				s.want(c.bytes)
				later(spareDelay)
				s.mu.Lock()
				file := s.file
				s.mu.Unlock()
				later(c.wait)
				if c.close {
					s.close()
					s.want(4096)
					later(spareDelay)
				}
				f := s.take(true)
				if (f != nil) != c.there {
					t.Errorf("there is some: %v", f != nil)
				}
				if f != nil {
					_ = f.Close()
				} else if file != nil && file.Close() == nil {
					t.Error("it was not closed")
				}
			})
		})
	}
}

// One that is closed while it makes some keeps none.
func TestSpareClosedMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s spare
		s.want(4096)
		s.close()
		later(spareDelay)
		if s.take(true) != nil {
			t.Error("there is some")
		}
	})
}
