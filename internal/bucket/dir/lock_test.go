// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/durable"
)

// childEnv makes the test binary another process: it holds Exclude of the
// bucket in the directory named until its input ends.
const childEnv = "OC_TEST_BUCKET_HOLD"

func TestMain(m *testing.M) {
	root := os.Getenv(childEnv)
	if root == "" {
		os.Exit(m.Run())
	}
	b, err := Open(root, durable.Disk{})
	if err == nil {
		_, err = b.Exclude(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("held")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(0)
}

// ended gives a context that is over as soon as a call waits for a lock.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// waits tells whether a Bucket's conditional Puts have to wait.
func waits(t *testing.T, b *Bucket) bool {
	t.Helper()
	unlock, err := b.sweep.share(ended(t))
	if errors.Is(err, context.Canceled) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	return false
}

func TestExclude(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	mine, other := open(t, root, durable.Disk{}), open(t, root, durable.Disk{})
	etag, err := mine.Put(t.Context(), "k", nil, bucket.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	release, err := mine.Exclude(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The holder's own go on, and what has no condition does everywhere.
	if etag, err = mine.Put(t.Context(), "k", []byte("1"), bucket.Condition{ETag: etag}); err != nil {
		t.Fatal(err)
	}
	if _, err := mine.Put(t.Context(), "new", nil, bucket.Condition{Absent: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Put(t.Context(), "free", nil, bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := other.Delete(t.Context(), "free"); err != nil {
		t.Fatal(err)
	}
	if !waits(t, other) || waits(t, mine) {
		t.Error("the lock is not the holder's alone")
	}
	if _, err := other.Exclude(ended(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("a second Exclude: %v", err)
	}
	done := make(chan error)
	go func() {
		_, err := other.Put(t.Context(), "k", []byte("2"), bucket.Condition{ETag: etag})
		done <- err
	}()
	if body, _, err := mine.Get(t.Context(), "k"); err != nil || string(body) != "1" {
		t.Errorf("%q, %v", body, err)
	}
	release()
	release() // the second time nothing
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	again, err := other.Exclude(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// A Put that waits for another's lock goes on when its own Bucket gets it.
func TestOwnPutThatWaitedGoesOn(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	first, second := open(t, root, durable.Disk{}), open(t, root, durable.Disk{})
	release, err := first.Exclude(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	puts := make(chan error, 4)
	for i := range cap(puts) {
		go func() {
			_, err := second.Put(t.Context(), fmt.Sprint(i), nil, bucket.Condition{Absent: true})
			puts <- err
		}()
	}
	held := make(chan func())
	go func() {
		r, err := second.Exclude(t.Context())
		if err != nil {
			t.Error(err)
			r = func() {}
		}
		held <- r
	}()
	release()
	own := <-held // before, after or amid the Puts
	for range cap(puts) {
		if err := <-puts; err != nil {
			t.Error(err)
		}
	}
	own()
}

// Exclude ends with the process that holds it.
func TestExcludeEndsWithProcess(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	b := open(t, root, durable.Disk{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self)
	child.Env = append(os.Environ(), childEnv+"="+root)
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if !waits(t, b) {
		t.Error("another process holds the lock, but this one need not wait")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	if _, err := b.Put(t.Context(), "k", nil, bucket.Condition{Absent: true}); err != nil {
		t.Fatal(err)
	}
	third := open(t, root, durable.Disk{})
	if entries, err := os.ReadDir(root + "/" + tempName); err != nil || len(entries) != 2 {
		t.Errorf("temporary directories of %v, %v; %s", entries, err, third.root)
	}
}
