// SPDX-License-Identifier: Apache-2.0

package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/bucket"
)

// Conformance tests that a bucket keeps the contract of bucket.Bucket. open
// gives an empty one, used by one test.
func Conformance(t *testing.T, open func(t *testing.T) bucket.Bucket) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, b bucket.Bucket)
	}{
		{"put get", putGet},
		{"missing", missing},
		{"if absent", ifAbsent},
		{"if match", ifMatch},
		{"read at", readAt},
		{"list order", listOrder},
		{"list pages", listPages},
		{"odd keys", oddKeys},
		{"refused", refused},
		{"big", big},
		{"one winner", oneWinner},
		{"counter", counter},
		{"whole or not at all", whole},
		{"deletes beside puts", deletesBesidePuts},
		{"ended context", endedContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, open(t))
		})
	}
}

// always is the condition of a Put that has none.
var always = bucket.Condition{}

func put(t *testing.T, b bucket.Bucket, key string, body []byte, cond bucket.Condition) string {
	t.Helper()
	etag, err := b.Put(t.Context(), key, body, cond)
	if err != nil {
		t.Fatal(err)
	}
	if etag == "" {
		t.Fatalf("%s: no version", key)
	}
	return etag
}

// expect tests what an object holds.
func expect(t *testing.T, b bucket.Bucket, key string, want []byte, etag string) {
	t.Helper()
	body, got, err := b.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(body, want) {
		t.Fatalf("%s holds %d bytes, not the %d put", key, len(body), len(want))
	}
	if got != etag {
		t.Fatalf("%s is version %q, put as %q", key, got, etag)
	}
}

func expectErr(t *testing.T, want, got error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func putGet(t *testing.T, b bucket.Bucket) {
	for _, cond := range []bucket.Condition{{}, {Volatile: true}} {
		first := put(t, b, "a/b", []byte("one"), cond)
		expect(t, b, "a/b", []byte("one"), first)
		second := put(t, b, "a/b", []byte("another"), cond)
		if first == second {
			t.Errorf("two contents, one version %s", first)
		}
		expect(t, b, "a/b", []byte("another"), second)
		expect(t, b, "empty", nil, put(t, b, "empty", nil, cond))
	}
}

func missing(t *testing.T, b bucket.Bucket) {
	put(t, b, "here/x", []byte("x"), always)
	for _, key := range []string{"not", "not/there", "here", "here/y"} {
		_, _, err := b.Get(t.Context(), key)
		expectErr(t, bucket.ErrNotExist, err)
		expectErr(t, bucket.ErrNotExist, b.ReadAt(t.Context(), key, make([]byte, 1), 0))
		expectErr(t, nil, b.Delete(t.Context(), key))
	}
	expectErr(t, nil, b.Delete(t.Context(), "here/x"))
	_, _, err := b.Get(t.Context(), "here/x")
	expectErr(t, bucket.ErrNotExist, err)
	put(t, b, "here/x", []byte("x"), bucket.Condition{Absent: true})
}

func ifAbsent(t *testing.T, b bucket.Bucket) {
	absent := bucket.Condition{Absent: true}
	etag := put(t, b, "k", []byte("first"), absent)
	_, err := b.Put(t.Context(), "k", []byte("second"), absent)
	expectErr(t, bucket.ErrCondition, err)
	expect(t, b, "k", []byte("first"), etag)
	expectErr(t, nil, b.Delete(t.Context(), "k"))
	put(t, b, "k", []byte("third"), bucket.Condition{Absent: true, Volatile: true})
	_, err = b.Put(t.Context(), "k", []byte("fourth"), bucket.Condition{Absent: true, Volatile: true})
	expectErr(t, bucket.ErrCondition, err)
}

func ifMatch(t *testing.T, b bucket.Bucket) {
	_, err := b.Put(t.Context(), "k", []byte("x"), bucket.Condition{ETag: "0123456789abcdef0123456789abcdef"})
	expectErr(t, bucket.ErrCondition, err)
	first := put(t, b, "k", []byte("first"), always)
	second := put(t, b, "k", []byte("second"), bucket.Condition{ETag: first})
	_, err = b.Put(t.Context(), "k", []byte("third"), bucket.Condition{ETag: first})
	expectErr(t, bucket.ErrCondition, err)
	expect(t, b, "k", []byte("second"), second)
	third := put(t, b, "k", []byte("third"), bucket.Condition{ETag: second, Volatile: true})
	expect(t, b, "k", []byte("third"), third)
	expectErr(t, nil, b.Delete(t.Context(), "k"))
	_, err = b.Put(t.Context(), "k", []byte("fourth"), bucket.Condition{ETag: third})
	expectErr(t, bucket.ErrCondition, err)
	_, _, err = b.Get(t.Context(), "k")
	expectErr(t, bucket.ErrNotExist, err)
}

func readAt(t *testing.T, b bucket.Bucket) {
	body := random(100_000)
	put(t, b, "k", body, always)
	for _, r := range [][2]int{{0, 1}, {0, 100_000}, {4096, 8192}, {99_999, 1}, {50, 0}} {
		p := make([]byte, r[1])
		if err := b.ReadAt(t.Context(), "k", p, int64(r[0])); err != nil {
			t.Fatalf("%v: %v", r, err)
		}
		if !bytes.Equal(p, body[r[0]:r[0]+r[1]]) {
			t.Errorf("%v: wrong bytes", r)
		}
	}
	for _, r := range [][2]int{{0, 100_001}, {99_999, 2}, {100_000, 1}, {200_000, 10}} {
		expectErr(t, io.ErrUnexpectedEOF, b.ReadAt(t.Context(), "k", make([]byte, r[1]), int64(r[0])))
	}
	p := make([]byte, 5)
	for i := range 3 { // what is read is what was put last
		put(t, b, "k", fmt.Appendf(nil, "body%d", i), always)
		if err := b.ReadAt(t.Context(), "k", p, 0); err != nil || string(p) != fmt.Sprintf("body%d", i) {
			t.Fatalf("%q, %v", p, err)
		}
	}
	expectErr(t, nil, b.Delete(t.Context(), "k"))
	expectErr(t, bucket.ErrNotExist, b.ReadAt(t.Context(), "k", p, 0))
}

// list gives all objects of a prefix, by pages of limit.
func list(t *testing.T, b bucket.Bucket, prefix, after string, limit int) []bucket.Object {
	t.Helper()
	var all []bucket.Object
	for {
		page, more, err := b.List(t.Context(), prefix, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if limit > 0 && len(page) > limit {
			t.Fatalf("a page of %d, not %d", len(page), limit)
		}
		all = append(all, page...)
		if !more {
			return all
		}
		if len(page) == 0 {
			t.Fatal("more, but nothing to go on from")
		}
		after = page[len(page)-1].Key
	}
}

func keysOf(objects []bucket.Object) []string {
	keys := []string{}
	for _, o := range objects {
		keys = append(keys, o.Key)
	}
	return keys
}

func listOrder(t *testing.T, b bucket.Bucket) {
	keys := []string{"a-b", "a.b", "a/b", "a/b-c/d", "a/b.c", "a0", "a_b", "A", "B/a", "Z", "ab/c/d/e", "ab/c0", "b"}
	for i, key := range keys {
		put(t, b, key, make([]byte, i), always)
	}
	slices.Sort(keys)
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/b-c/", "ab/c", "ab/c/", "A", "x", "b/x", "b"} {
		for _, after := range []string{"", "a", "a/b", "a/b-c", "a/b-c/d", "a/z", "ab/c/d", "B", "zz"} {
			want := []string{}
			for _, key := range keys {
				if strings.HasPrefix(key, prefix) && key > after {
					want = append(want, key)
				}
			}
			for _, limit := range []int{0, 2} {
				if got := keysOf(list(t, b, prefix, after, limit)); !slices.Equal(got, want) {
					t.Errorf("list of %q after %q by %d: %q, want %q", prefix, after, limit, got, want)
				}
			}
		}
	}
	for _, o := range list(t, b, "", "", 0) {
		body, etag, err := b.Get(t.Context(), o.Key)
		if err != nil || int64(len(body)) != o.Size || etag != o.ETag {
			t.Errorf("listed %+v, got %d bytes of %s, %v", o, len(body), etag, err)
		}
	}
}

func listPages(t *testing.T, b bucket.Bucket) {
	want := []string{}
	var g errgroup.Group
	g.SetLimit(8)
	for i := range 40 {
		key := fmt.Sprintf("p/%02d/x", i)
		want = append(want, key)
		g.Go(func() error {
			_, err := b.Put(t.Context(), key, []byte(key), bucket.Condition{Volatile: true})
			return err
		})
	}
	expectErr(t, nil, g.Wait())
	for _, limit := range []int{1, 7, 39, 40, 41, 1000, 0} {
		if got := keysOf(list(t, b, "p/", "", limit)); !slices.Equal(got, want) {
			t.Errorf("by %d: %d objects", limit, len(got))
		}
	}
	page, more, err := b.List(t.Context(), "p/", "", 40)
	if err != nil || len(page) != 40 {
		t.Errorf("%d objects, more %v, %v", len(page), more, err)
	}
	// A list goes on when objects come and go before and behind it.
	page, _, err = b.List(t.Context(), "p/", "", 10)
	expectErr(t, nil, err)
	expectErr(t, nil, b.Delete(t.Context(), page[9].Key))
	expectErr(t, nil, b.Delete(t.Context(), want[10]))
	put(t, b, "p/39z/x", nil, always)
	rest := append(slices.Clone(want[11:]), "p/39z/x")
	if got := keysOf(list(t, b, "p/", page[9].Key, 10)); !slices.Equal(got, rest) {
		t.Errorf("the rest is %q", got)
	}
}

func oddKeys(t *testing.T, b bucket.Bucket) {
	long := strings.Repeat("x", bucket.MaxElement)
	keys := []string{
		"0", "-", "_", "a..b", "a...", "A/a/A", "-x/-y", "UPPER", "upper", "x.json.tmp", "tmp/lock",
		long, strings.Repeat("y/", 40) + "z",
		strings.Join([]string{long[1:] + "y", long, long, long[:bucket.MaxElement-3]}, "/"),
	}
	for _, key := range keys {
		expect(t, b, key, []byte(key), put(t, b, key, []byte(key), bucket.Condition{Absent: true}))
	}
	slices.Sort(keys)
	if got := keysOf(list(t, b, "", "", 5)); !slices.Equal(got, keys) {
		t.Errorf("listed %q", got)
	}
	for _, key := range keys {
		expectErr(t, nil, b.Delete(t.Context(), key))
	}
	if got := keysOf(list(t, b, "", "", 0)); len(got) != 0 {
		t.Errorf("left %q", got)
	}
}

func refused(t *testing.T, b bucket.Bucket) {
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", ".tmp/x", ".lock", "a/.b", "a b", "a\x00", "é", "a\\b", "a%2fb", "a+b",
		strings.Repeat("x", bucket.MaxElement+1), strings.Repeat("x/", bucket.MaxKey/2) + "x",
	} {
		if _, err := b.Put(t.Context(), key, nil, always); err == nil {
			t.Errorf("put of %q went through", key)
		}
		if _, _, err := b.Get(t.Context(), key); err == nil {
			t.Errorf("get of %q went through", key)
		}
		if err := b.ReadAt(t.Context(), key, nil, 0); err == nil {
			t.Errorf("read of %q went through", key)
		}
		if err := b.Delete(t.Context(), key); err == nil {
			t.Errorf("delete of %q went through", key)
		}
	}
	for _, prefix := range []string{"/", "../", "a//", ".tmp", "a/../b"} {
		if _, _, err := b.List(t.Context(), prefix, "", 0); err == nil {
			t.Errorf("list of %q went through", prefix)
		}
	}
	if _, err := b.Put(t.Context(), "k", make([]byte, bucket.MaxObject+1), always); err == nil {
		t.Error("put of more than MaxObject went through")
	}
	if _, err := b.Put(t.Context(), "k", nil, bucket.Condition{Absent: true, ETag: "x"}); err == nil {
		t.Error("a condition that cannot hold does")
	}
	if got := list(t, b, "", "", 0); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

func big(t *testing.T, b bucket.Bucket) {
	for _, n := range []int{5<<20 + 1, bucket.MaxObject} {
		body := random(n)
		expect(t, b, "big", body, put(t, b, "big", body, always))
		p := make([]byte, 1<<20)
		if err := b.ReadAt(t.Context(), "big", p, int64(n-len(p))); err != nil || !bytes.Equal(p, body[n-len(p):]) {
			t.Errorf("the last MiB: %v", err)
		}
	}
}

// Of many conditional writes at the same time exactly one wins, and it knows.
func oneWinner(t *testing.T, b bucket.Bucket) {
	const n = 12
	cond := bucket.Condition{Absent: true}
	for round := range 4 {
		won := make([]string, n)
		var g errgroup.Group
		for i := range n {
			g.Go(func() (err error) {
				won[i], err = b.Put(t.Context(), "k", fmt.Appendf(nil, "round %d writer %d", round, i), cond)
				if errors.Is(err, bucket.ErrCondition) {
					err = nil
				}
				return err
			})
		}
		expectErr(t, nil, g.Wait())
		winner := -1
		for i, etag := range won {
			if etag == "" {
				continue
			}
			if winner >= 0 {
				t.Fatalf("round %d: %d and %d won", round, winner, i)
			}
			winner = i
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody won", round)
		}
		expect(t, b, "k", fmt.Appendf(nil, "round %d writer %d", round, winner), won[winner])
		cond = bucket.Condition{ETag: won[winner], Volatile: round%2 == 0}
	}
}

// A counter that many raise by If-Match loses nothing.
func counter(t *testing.T, b bucket.Bucket) {
	const writers, rounds = 4, 8
	put(t, b, "n", nil, always)
	var g errgroup.Group
	for range writers {
		g.Go(func() error {
			for range rounds {
				for {
					body, etag, err := b.Get(t.Context(), "n")
					if err != nil {
						return err
					}
					_, err = b.Put(t.Context(), "n", append(body, '+'), bucket.Condition{ETag: etag, Volatile: true})
					if err == nil {
						break
					}
					if !errors.Is(err, bucket.ErrCondition) {
						return err
					}
				}
			}
			return nil
		})
	}
	expectErr(t, nil, g.Wait())
	body, _, err := b.Get(t.Context(), "n")
	if err != nil || len(body) != writers*rounds {
		t.Errorf("counted %d, %v, want %d", len(body), err, writers*rounds)
	}
}

// Whoever reads while an object is being overwritten gets one version whole, and
// no name of a later one: on that condition he would overwrite what he never saw.
func whole(t *testing.T, b bucket.Bucket) {
	const n = 300_000
	body := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, n+i) }
	numbers := map[string]int{put(t, b, "k", body(0), always): 0} // of the versions
	type read struct {
		number int // of the content
		etag   string
	}
	var reads [2][]read
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var readers errgroup.Group
	for r := range reads {
		readers.Go(func() error {
			for ctx.Err() == nil {
				got, etag, err := b.Get(t.Context(), "k")
				if err != nil {
					return err
				}
				if !bytes.Equal(got, body(int(got[0]))) {
					return fmt.Errorf("%d bytes are of no one version", len(got))
				}
				reads[r] = append(reads[r], read{int(got[0]), etag})
				p := make([]byte, n)
				if err := b.ReadAt(t.Context(), "k", p, 0); err != nil {
					return err
				}
				if !bytes.Equal(p, body(int(p[0]))[:n]) {
					return errors.New("a range is of no one version")
				}
			}
			return nil
		})
	}
	for i := 1; i <= 30; i++ {
		numbers[put(t, b, "k", body(i), bucket.Condition{Volatile: true})] = i
		if got := list(t, b, "k", "", 0); len(got) != 1 || got[0].Size != int64(n+i) {
			t.Errorf("listed %v", got)
		}
	}
	cancel()
	expectErr(t, nil, readers.Wait())
	for _, r := range slices.Concat(reads[:]...) {
		if number, ok := numbers[r.etag]; !ok || number > r.number {
			t.Errorf("content of version %d came with the name of %d (%s)", r.number, number, r.etag)
		}
	}
}

// What was put stays, however its neighbours come and go.
func deletesBesidePuts(t *testing.T, b bucket.Bucket) {
	var g errgroup.Group
	for i := range 4 {
		g.Go(func() error {
			key := fmt.Sprintf("d/e/f/%d", i)
			for range 15 {
				if _, err := b.Put(t.Context(), key, []byte(key), bucket.Condition{Absent: true, Volatile: i%2 == 0}); err != nil {
					return err
				}
				body, _, err := b.Get(t.Context(), key)
				if err != nil || string(body) != key {
					return fmt.Errorf("%s is %q: %w", key, body, err)
				}
				if err := b.Delete(t.Context(), key); err != nil {
					return err
				}
			}
			return nil
		})
	}
	expectErr(t, nil, g.Wait())
	if got := list(t, b, "", "", 0); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

func endedContext(t *testing.T, b bucket.Bucket) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.Put(ctx, "k", random(3<<20), always)
	expectErr(t, context.Canceled, err)
	if got := list(t, b, "", "", 0); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}
