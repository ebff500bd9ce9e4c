// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/bucket/s3"
	"github.com/opencomputer/oc/internal/fault"
)

// behind opens the bucket of a server of its own through a proxy.
func behind(t *testing.T, timeout time.Duration) (*s3.Bucket, *buckettest.Proxy, *buckettest.S3) {
	t.Helper()
	server := buckettest.StartS3(t)
	proxy := buckettest.StartProxy(t, server.Endpoint())
	config := server.Config()
	config.Endpoint, config.Timeout = proxy.URL(), timeout
	return open(t, config), proxy, server
}

func TestConformanceOverSlowLink(t *testing.T) {
	t.Parallel()
	server := buckettest.StartS3(t)
	proxy := buckettest.StartProxy(t, server.Endpoint())
	proxy.SetLink(buckettest.Link{Delay: 2 * time.Millisecond, Rate: 400 << 20})
	var n atomic.Int64
	buckettest.Conformance(t, func(t *testing.T) bucket.Bucket {
		config := server.Config()
		config.Endpoint = proxy.URL()
		config.URL += fmt.Sprintf("/%d", n.Add(1))
		return open(t, config)
	})
}

// calls makes each call of the contract and tests its result.
func calls(t *testing.T, b bucket.Bucket) {
	t.Helper()
	body := bytes.Repeat([]byte("0123456789"), 50_000)
	if _, err := b.Put(t.Context(), "a/k", body, bucket.Condition{}); err != nil {
		t.Error(err)
	}
	if got, _, err := b.Get(t.Context(), "a/k"); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	p := make([]byte, 10)
	if err := b.ReadAt(t.Context(), "a/k", p, 100_000); err != nil || string(p) != "0123456789" {
		t.Errorf("%q, %v", p, err)
	}
	if page, _, err := b.List(t.Context(), "a/", "", 0); err != nil || len(page) != 1 {
		t.Errorf("%v, %v", page, err)
	}
	if err := b.Delete(t.Context(), "a/k"); err != nil {
		t.Error(err)
	}
}

// What fails in passing does not reach the caller.
func TestPassingFaults(t *testing.T) {
	t.Parallel()
	server := buckettest.StartS3(t)
	for name, verdict := range map[string]buckettest.Verdict{
		"500": http.StatusInternalServerError, "503": http.StatusServiceUnavailable, "429": http.StatusTooManyRequests,
		"409": http.StatusConflict, "cut": buckettest.Cut, "answer": buckettest.LoseAnswer, "body": buckettest.CutBody,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := buckettest.StartProxy(t, server.Endpoint())
			config := server.Config()
			config.Endpoint, config.URL = proxy.URL(), config.URL+"/"+name
			b := open(t, config)
			var mu sync.Mutex
			failed := map[string]int{}
			proxy.Judge(func(r *http.Request) buckettest.Verdict {
				if verdict == buckettest.CutBody && r.Method != http.MethodGet {
					return buckettest.Pass // it has no body
				}
				mu.Lock()
				defer mu.Unlock()
				call := r.Method + r.URL.RawQuery + r.Header.Get("Range")
				if failed[call]++; failed[call] <= 2 {
					return verdict
				}
				return buckettest.Pass
			})
			calls(t, b)
			want := 5
			if verdict == buckettest.CutBody {
				want = 3
			}
			if len(failed) != want {
				t.Errorf("%d calls failed at first, want %d", len(failed), want)
			}
		})
	}
}

// A conditional Put whose answer was lost is refused when it is repeated; the
// caller finds its own object.
func TestLostAcknowledgement(t *testing.T) {
	t.Parallel()
	b, proxy, _ := behind(t, 0)
	var cond = bucket.Condition{Absent: true}
	for _, body := range []string{"first", "second"} {
		proxy.Judge(buckettest.Times(1, http.MethodPut, buckettest.LoseAnswer))
		if _, err := b.Put(t.Context(), "k", []byte(body), cond); !errors.Is(err, bucket.ErrCondition) {
			t.Fatalf("got %v", err)
		}
		got, etag, err := b.Get(t.Context(), "k")
		if err != nil || string(got) != body {
			t.Fatalf("%q, %v", got, err)
		}
		cond = bucket.Condition{ETag: etag}
	}
}

// What fails for good is told at once.
func TestRefusals(t *testing.T) {
	t.Parallel()
	b, proxy, _ := behind(t, 0)
	var requests atomic.Int64
	proxy.Judge(func(*http.Request) buckettest.Verdict {
		requests.Add(1)
		return http.StatusForbidden
	})
	_, err := b.Put(t.Context(), "k", nil, bucket.Condition{})
	if !fault.Is(err, fault.Invalid) || fault.As(err).Hint == "" {
		t.Errorf("got %v", err)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// A link that stays down ends each call within its time, and the bucket is as
// good as before when it is up again.
func TestLinkDown(t *testing.T) {
	t.Parallel()
	b, proxy, _ := behind(t, 2*time.Second)
	proxy.SetLink(buckettest.Link{Down: true})
	_, err := b.Put(t.Context(), "k", make([]byte, 1<<20), bucket.Condition{})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.ReadAt(ctx, "k", make([]byte, 1), 0) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	proxy.SetLink(buckettest.Link{})
	calls(t, b)
}

// An upload that the link's rate makes longer than a stall is none.
func TestLongUpload(t *testing.T) {
	t.Parallel()
	b, proxy, _ := behind(t, 20*time.Second) // a stall is 5 s, longer than what the sockets hold takes
	proxy.SetLink(buckettest.Link{Rate: 4 << 20})
	var puts atomic.Int64
	proxy.Judge(func(*http.Request) buckettest.Verdict {
		puts.Add(1)
		return buckettest.Pass
	})
	if _, err := b.Put(t.Context(), "k", make([]byte, 28<<20), bucket.Condition{Absent: true}); err != nil {
		t.Error(err)
	}
	if n := puts.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// An upload goes on when the server is away in the middle of it.
func TestRestartAmidUpload(t *testing.T) {
	t.Parallel()
	b, proxy, server := behind(t, 0)
	proxy.SetLink(buckettest.Link{Rate: 4 << 20})
	body := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	arrived := make(chan struct{}, 100)
	proxy.Judge(func(r *http.Request) buckettest.Verdict {
		arrived <- struct{}{}
		return buckettest.Pass
	})
	done := make(chan error)
	go func() {
		_, err := b.Put(t.Context(), "k", body, bucket.Condition{Absent: true})
		done <- err
	}()
	<-arrived // its body takes a quarter of a second
	server.Stop()
	<-arrived // once more, in vain
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, _, err := b.Get(t.Context(), "k"); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if page, _, err := b.List(t.Context(), "", "", 0); err != nil || len(page) != 1 {
		t.Errorf("%v, %v", page, err)
	}
}

func BenchmarkPut(b *testing.B) {
	server := buckettest.StartS3(b)
	bk := open(b, server.Config())
	n := 0
	for _, size := range []int{4 << 10, 16 << 20} {
		body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		b.Run(fmt.Sprintf("%d KiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				n++
				if _, err := bk.Put(b.Context(), fmt.Sprint("packs/", n), body, bucket.Condition{Absent: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("read 4 KiB", func(b *testing.B) {
		if _, err := bk.Put(b.Context(), "k", make([]byte, 1<<20), bucket.Condition{}); err != nil {
			b.Fatal(err)
		}
		p := make([]byte, 4096)
		for b.Loop() {
			if err := bk.ReadAt(b.Context(), "k", p, 4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}
