// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/opencomputer/oc/internal/bucket"
)

// memory is a bucket whose every request is atomic. The ETag is of the content
// alone, as in S3. Not for concurrent use.
type memory struct {
	objects map[string]stored
	page    int // keys in a page of a list; 0: all
}

type stored struct {
	body []byte
	etag string
}

func newMemory(page int) *memory { return &memory{map[string]stored{}, page} }

func (m *memory) clone() *memory { return &memory{maps.Clone(m.objects), m.page} }

func (m *memory) Put(_ context.Context, key string, body []byte, cond bucket.Condition) (string, error) {
	old, ok := m.objects[key]
	if cond.Absent && ok || cond.ETag != "" && (!ok || old.etag != cond.ETag) {
		return "", fmt.Errorf("put %s: %w", key, bucket.ErrCondition)
	}
	h := fnv.New64a()
	h.Write(body)
	o := stored{bytes.Clone(body), fmt.Sprintf("%016x", h.Sum64())}
	m.objects[key] = o
	return o.etag, nil
}

// set puts an object there, whatever there is.
func (m *memory) set(key string, body []byte) {
	if _, err := m.Put(context.Background(), key, body, bucket.Condition{}); err != nil {
		panic(err)
	}
}

func (m *memory) Get(_ context.Context, key string) ([]byte, string, error) {
	o, ok := m.objects[key]
	if !ok {
		return nil, "", fmt.Errorf("get %s: %w", key, bucket.ErrNotExist)
	}
	return bytes.Clone(o.body), o.etag, nil
}

func (m *memory) ReadAt(_ context.Context, key string, p []byte, off int64) error {
	o, ok := m.objects[key]
	if !ok {
		return fmt.Errorf("read %s: %w", key, bucket.ErrNotExist)
	}
	_, err := io.ReadFull(io.NewSectionReader(bytes.NewReader(o.body), off, int64(len(p))), p)
	return err
}

func (m *memory) List(_ context.Context, prefix, after string, limit int) ([]bucket.Object, bool, error) {
	page, more := cut(m.keys(prefix), m, after, limit)
	return page, more, nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	delete(m.objects, key)
	return nil
}

func (m *memory) keys(prefix string) []string {
	return slices.Sorted(func(yield func(string) bool) {
		for k := range m.objects {
			if strings.HasPrefix(k, prefix) && !yield(k) {
				return
			}
		}
	})
}

// cut gives a page of the keys, as far as they are there.
func cut(keys []string, m *memory, after string, limit int) (page []bucket.Object, more bool) {
	if m.page > 0 && (limit == 0 || limit > m.page) {
		limit = m.page
	}
	for _, k := range keys {
		if k <= after {
			continue
		}
		if limit > 0 && len(page) == limit {
			return page, true
		}
		o, ok := m.objects[k]
		if ok {
			page = append(page, bucket.Object{Key: k, ETag: o.etag, Size: int64(len(o.body))})
		}
	}
	return page, false
}

// world is a memory and actors who do one request at a time, when they are told
// to. All goroutines that use it are in one synctest bubble.
type world struct {
	*memory
	dir   bool // lists are not ordered in time, and there is a lock instead
	stray bool // a write that its caller has cancelled can land later

	mu       sync.Mutex
	pending  []*request // of actors that wait
	detached []*request // given up by their actors, on the way still
	holder   int        // actor that excludes the others, or -1
	history  []uint64   // per actor: all answers so far, which decide what it does next
	running  int        // actors
	ended    bool
}

// errLost is an answer that did not come.
var errLost = errors.New("the answer was lost")

type request struct {
	actor int
	write bool
	cond  bool
	label string
	run   func() // on the world, one at a time
	hash  func() string
	reply chan error
}

func newWorld(m *memory, dir bool, actors int) *world {
	return &world{memory: m, dir: dir, holder: -1, history: make([]uint64, actors)}
}

// view is the bucket as one actor sees it.
type view struct {
	w     *world
	actor int
}

// dirView has the lock too.
type dirView struct{ view }

func (v view) do(ctx context.Context, r *request) error {
	r.actor, r.reply = v.actor, make(chan error, 1)
	w := v.w
	w.mu.Lock()
	if w.ended || ctx.Err() != nil {
		w.mu.Unlock()
		return errLost
	}
	w.pending = append(w.pending, r)
	w.mu.Unlock()
	select {
	case err := <-r.reply:
		return err
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pending = slices.DeleteFunc(w.pending, func(p *request) bool { return p == r })
		if w.stray && r.write && !w.ended {
			w.detached = append(w.detached, r)
		}
		return ctx.Err()
	}
}

func (v view) Put(ctx context.Context, key string, body []byte, cond bucket.Condition) (etag string, err error) {
	r := &request{write: true, cond: cond.Absent || cond.ETag != "", label: "PUT " + describe(key, body)}
	var e string
	var rerr error
	r.run = func() { e, rerr = v.w.Put(ctx, key, body, cond) }
	r.hash = func() string { return e + fmt.Sprint(rerr) }
	if err := v.do(ctx, r); err != nil {
		return "", err
	}
	return e, rerr
}

func (v view) Get(ctx context.Context, key string) (body []byte, etag string, err error) {
	r := &request{label: "GET " + key}
	r.run = func() { body, etag, err = v.w.Get(ctx, key) }
	r.hash = func() string { return etag + fmt.Sprint(err) }
	if derr := v.do(ctx, r); derr != nil {
		return nil, "", derr
	}
	return body, etag, err
}

func (v view) ReadAt(ctx context.Context, key string, p []byte, off int64) (err error) {
	r := &request{label: "READ " + key}
	r.run = func() { err = v.w.ReadAt(ctx, key, p, off) }
	r.hash = func() string { return fmt.Sprint(err) }
	if derr := v.do(ctx, r); derr != nil {
		return derr
	}
	return err
}

func (v view) List(ctx context.Context, prefix, after string, limit int) (page []bucket.Object, more bool, err error) {
	var high []string
	if v.w.dir { // the names from the middle on are read first
		r := &request{label: "LIST half of " + prefix}
		r.run = func() { high = v.w.keys(prefix) }
		r.hash = func() string { return strings.Join(high, " ") }
		if err := v.do(ctx, r); err != nil {
			return nil, false, err
		}
	}
	r := &request{label: "LIST " + prefix + " after " + after}
	r.run = func() {
		keys := v.w.keys(prefix)
		if v.w.dir {
			keys = join(keys, high)
		}
		page, more = cut(keys, v.w.memory, after, limit)
	}
	r.hash = func() string { return fmt.Sprint(page, more) }
	if err := v.do(ctx, r); err != nil {
		return nil, false, err
	}
	return page, more, nil
}

// join takes the lower half of the names as they are, the upper as they were.
func join(now, before []string) []string {
	if len(before) == 0 {
		return now
	}
	middle := before[len(before)/2]
	var keys []string
	for _, k := range now {
		if k < middle {
			keys = append(keys, k)
		}
	}
	return append(keys, before[len(before)/2:]...)
}

func (v view) Delete(ctx context.Context, key string) error {
	r := &request{label: "DELETE " + key}
	r.run = func() { _ = v.w.Delete(ctx, key) }
	r.hash = func() string { return "" }
	return v.do(ctx, r)
}

func (v dirView) Exclude(ctx context.Context) (func(), error) {
	r := &request{label: "LOCK"}
	r.run = func() { v.w.holder = v.actor }
	r.hash = func() string { return "" }
	if err := v.do(ctx, r); err != nil {
		return nil, err
	}
	return func() {
		v.w.mu.Lock()
		defer v.w.mu.Unlock()
		v.w.holder = -1
	}, nil
}

// enabled tells whether a request can be carried out now.
func (w *world) enabled(r *request) bool {
	if r.label == "LOCK" {
		return w.holder < 0
	}
	return w.holder < 0 || w.holder == r.actor || !r.cond
}

// ready gives the requests that can be carried out, in an order that does not
// depend on how the goroutines ran.
func (w *world) ready(l *[]*request) []*request {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*request
	for _, r := range *l {
		if w.enabled(r) {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b *request) int {
		return 2*cmp3(a.actor, b.actor) + strings.Compare(a.label, b.label)
	})
	return out
}

func cmp3(a, b int) int { return min(max(a-b, -1), 1) }

// deliver carries out a request and answers it; detach answers it only, and it
// can land later; land carries out such a one.
func (w *world) deliver(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = slices.DeleteFunc(w.pending, func(p *request) bool { return p == r })
	r.run()
	w.note(r.actor, r.label+r.hash())
	r.reply <- nil
}

func (w *world) detach(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = slices.DeleteFunc(w.pending, func(p *request) bool { return p == r })
	w.detached = append(w.detached, r)
	w.note(r.actor, r.label+"lost")
	r.reply <- errLost
}

func (w *world) land(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.detached = slices.DeleteFunc(w.detached, func(p *request) bool { return p == r })
	r.run()
}

func (w *world) note(actor int, s string) {
	h := fnv.New64a()
	fmt.Fprint(h, w.history[actor], s)
	w.history[actor] = h.Sum64()
}

// key tells states apart. rest is what the caller knows besides.
func (w *world) key(rest ...any) uint64 {
	h := fnv.New64a()
	for _, k := range w.keys("") {
		fmt.Fprint(h, k, w.objects[k].etag)
	}
	for _, r := range w.ready(&w.detached) {
		fmt.Fprint(h, r.label)
	}
	fmt.Fprint(h, w.history, w.holder, rest)
	return h.Sum64()
}

func describe(key string, body []byte) string {
	if id, ok := strings.CutPrefix(key, Prefix); ok {
		if o, err := decode(id, body); err == nil {
			return fmt.Sprintf("%s %s pins %v packs %v", key, o.State, o.Pins, o.Packs)
		}
	}
	return key
}

var (
	_ bucket.Bucket   = (*memory)(nil)
	_ bucket.Bucket   = view{}
	_ bucket.Excluder = dirView{}
)
