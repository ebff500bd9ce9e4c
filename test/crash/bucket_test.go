// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/bucket/s3"
	"github.com/opencomputer/oc/internal/store/refs"
	"github.com/opencomputer/oc/test/harness"
)

const (
	bucketRoundsShort = 8
	bucketRoundsLong  = 60
	// readEvery is after how many rounds all that is in the bucket is read: the
	// engine's build is most of it.
	readEvery = 4
	// How long after the beginning of an operation the kill comes at the latest:
	// over such a link it takes about as long.
	uploadWindow = time.Second
	sweepWindow  = 200 * time.Millisecond
	linkRate     = 12 << 20
	linkDelay    = 5 * time.Millisecond
	// mostKept is how many checkpoints there are at most; a sandbox has a limit.
	mostKept = 5
	// fill is what a checkpoint has that the ones before do not, in bytes.
	fill = 6 << 20
)

// bucketWorld is a world whose checkpoints are in a bucket.
type bucketWorld struct {
	*world
	link   *buckettest.Proxy
	bucket *s3.Bucket // not by the link
	box    string     // the sandbox
	seed   uint64

	mu     sync.Mutex
	sum    string            // of what the sandbox holds
	sums   map[string]string // of the checkpoints that said ready
	unsure map[string]string // of those that were being deleted
	gone   []string          // that were said to be deleted
}

func newBucketWorld(t *testing.T) *bucketWorld {
	t.Helper()
	seed := seeded(t)
	server := buckettest.StartS3(t)
	link := buckettest.StartProxy(t, server.Endpoint())
	c := server.Config()
	c.URL += "/prefix"
	b, err := s3.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	w := &bucketWorld{
		world: newWorld(t, choices(seed, setUp), harness.Settings{"store": c.URL, "store-endpoint": link.URL(), "pool": 0},
			"AWS_ACCESS_KEY_ID="+c.AccessKey, "AWS_SECRET_ACCESS_KEY="+c.SecretKey, "AWS_EC2_METADATA_DISABLED=true"),
		link: link, bucket: b, seed: seed, sums: map[string]string{}, unsure: map[string]string{},
	}
	t.Cleanup(func() { link.SetLink(buckettest.Link{}) }) // before the server is closed
	sb, err := w.api().CreateSandbox(t.Context(), client.CreateSandboxRequest{TemplateID: "small", MemoryMB: 256}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.box = sb.ID
	return w
}

// A server that keeps its checkpoints in a bucket is killed while it writes,
// deletes and frees there. What it said is there can be read and run afterwards,
// what it said is gone is gone, and in the end so is everything.
func TestKilledWhileUsingABucket(t *testing.T) {
	rounds := bucketRoundsShort
	if os.Getenv("OC_TEST_LONG") != "" {
		rounds = bucketRoundsLong
	}
	w := newBucketWorld(t)
	w.fills(t)
	if err := w.uploads(t.Context()); err != nil { // with the engine and the image
		t.Fatal(err)
	}
	for i := range rounds {
		w.rnd = choices(w.seed, i)
		t.Run(fmt.Sprintf("round %d", i), func(t *testing.T) {
			w.round(t)
			w.sound(t, i%readEvery == readEvery-1)
		})
		if t.Failed() {
			t.Fatalf("the server's log:\n%s", w.server.Log())
		}
	}
	w.leavesNothing(t)
}

func (w *bucketWorld) round(t *testing.T) {
	operations := map[string][]func(context.Context) error{
		"checkpoint": {w.uploads}, "checkpoint and gc": {w.uploads, w.collects}, "checkpoint and delete": {w.uploads, w.deletes},
		"delete and gc": {w.deletes, w.collects}, "gc": {w.collects},
	}
	op := pick(w.rnd, "checkpoint", "checkpoint and gc", "checkpoint and delete", "delete and gc", "gc")
	if len(w.sums) >= mostKept {
		op = "delete and gc"
	}
	window := uploadWindow
	if !strings.HasPrefix(op, "checkpoint") {
		window = sweepWindow
	}
	delay := time.Duration(w.rnd.Int64N(int64(window)))
	t.Logf("%s; %v later the server is killed", op, delay)
	w.fills(t)
	if len(w.sums) < 2 { // nothing can be lost
		if err := w.uploads(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.fills(t)
	}
	w.link.SetLink(buckettest.Link{Rate: linkRate, Delay: linkDelay})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan error, 2)
	for _, f := range operations[op] {
		go func() { done <- f(ctx) }()
	}
	<-time.After(delay)
	w.kill(t, "server")
	for range operations[op] {
		t.Log(<-done)
	}
	w.link.SetLink(buckettest.Link{})
	w.up(t)
	w.check(t)
}

// fills gives the sandbox something new.
func (w *bucketWorld) fills(t *testing.T) {
	t.Helper()
	await(t, "the sandbox takes new data", func(ctx context.Context) (err error) {
		w.sum, err = w.sha(ctx, w.box, fmt.Sprintf("head -c %d /dev/urandom >data;", fill))
		return err
	})
}

// sha gives the sum of what a sandbox holds, after a script.
func (w *bucketWorld) sha(ctx context.Context, id, script string) (string, error) {
	res, err := w.api().RunExec(ctx, id, client.ExecRequest{Cmd: "bash", Args: []string{"-c", script + "sha256sum <data"}})
	if err != nil {
		return "", err
	}
	sum, _, ok := strings.Cut(res.Stdout, " ")
	if res.ExitCode != 0 || !ok {
		return "", fmt.Errorf("%q %q", res.Stdout, res.Stderr)
	}
	return sum, nil
}

// The operations. They run side by side, so what they may touch is chosen, and
// what they did is noted, under a lock.

func (w *bucketWorld) uploads(ctx context.Context) error {
	w.mu.Lock()
	w.names++
	name, sum := fmt.Sprint("cp", w.names), w.sum
	w.mu.Unlock()
	cp, err := w.api().CreateCheckpoint(ctx, w.box, client.CreateCheckpointRequest{Name: name})
	if err == nil { // it answers before, if it takes long
		cp, err = w.api().WaitCheckpoint(ctx, cp.ID)
	}
	if err != nil {
		return err
	}
	if cp.Status != client.CheckpointReady {
		return fmt.Errorf("checkpoint %s is %s: %s", cp.ID, cp.Status, cp.ErrorMsg)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sums[cp.ID] = sum
	w.bear(cp.ID)
	return nil
}

func (w *bucketWorld) deletes(ctx context.Context) error {
	w.mu.Lock()
	if len(w.sums) < 2 { // the engine and the image would be uploaded again
		w.mu.Unlock()
		return errors.New("there is only one checkpoint")
	}
	cp := some(w.world, w.sums)
	w.unsure[cp] = w.sums[cp]
	delete(w.sums, cp)
	w.mu.Unlock()
	if err := w.api().DeleteCheckpoint(ctx, w.box, cp); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.unsure, cp)
	w.gone = append(w.gone, cp)
	return nil
}

func (w *bucketWorld) collects(ctx context.Context) error {
	_, err := w.api().CollectStore(ctx, client.StoreGCRequest{}, nil)
	return err
}

// check compares what there is with what was said.
func (w *bucketWorld) check(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var now map[string]string
	await(t, "nothing is half made", func(ctx context.Context) error {
		list, err := w.api().ListCheckpoints(ctx, w.box)
		now = map[string]string{}
		for _, cp := range list {
			now[cp.ID] = cp.Status
			if cp.Status != client.CheckpointReady && cp.Status != client.CheckpointFailed {
				err = errors.Join(err, fmt.Errorf("checkpoint %s is %s %s", cp.ID, cp.Status, cp.ErrorMsg))
			}
		}
		return err
	})
	for id, sum := range w.unsure {
		if now[id] == client.CheckpointReady {
			w.sums[id] = sum
		}
	}
	clear(w.unsure)
	for id := range w.sums {
		if now[id] != client.CheckpointReady {
			t.Errorf("checkpoint %s said ready and is %q", id, now[id])
		}
	}
	for _, id := range w.gone {
		if status, ok := now[id]; ok {
			t.Errorf("checkpoint %s was deleted and is %s", id, status)
		}
	}
	for id, status := range now {
		if _, promised := w.sums[id]; promised {
			continue
		}
		if status == client.CheckpointReady { // nobody was told
			if _, err := w.api().VerifyCheckpoint(ctx, id, nil); err != nil {
				t.Errorf("checkpoint %s, which nobody was told of: %v", id, err)
			}
		}
		if err := w.api().DeleteCheckpoint(ctx, w.box, id); err != nil {
			t.Errorf("deleting checkpoint %s: %v", id, err)
		}
	}
	w.opens(t, some(w.world, w.sums))
}

// sound wants a check of the store to find nothing.
func (w *bucketWorld) sound(t *testing.T, readData bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	report, err := w.api().CheckStore(ctx, client.StoreCheckRequest{ReadData: readData}, nil)
	if err != nil || len(report.Problems) > 0 || report.Checkpoints < len(w.sums) {
		t.Errorf("the store with %d checkpoints: %+v, %v", len(w.sums), report, err)
	}
}

// opens spawns from a checkpoint and checks what the spawn holds.
func (w *bucketWorld) opens(t *testing.T, cp string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	res, err := w.api().SpawnCheckpoint(ctx, cp, client.SpawnRequest{})
	if err != nil {
		t.Fatalf("spawning from %s, which said ready: %v", cp, err)
	}
	id := res.All()[0].ID
	if sum, err := w.sha(ctx, id, ""); err != nil || sum != w.sums[cp] {
		t.Errorf("the spawn of %s holds %s, %v, not %s", cp, sum, err, w.sums[cp])
	}
	w.kills(t, id)
}

// leavesNothing deletes everything and wants the bucket to be empty, once the
// claims of the servers that were killed have expired.
func (w *bucketWorld) leavesNothing(t *testing.T) {
	t.Helper()
	list, err := w.api().ListCheckpoints(t.Context(), w.box)
	if err != nil {
		t.Fatal(err)
	}
	for _, cp := range list {
		if err := w.api().DeleteCheckpoint(t.Context(), w.box, cp.ID); err != nil {
			t.Error(err)
		}
	}
	w.kills(t, w.box)
	await(t, "nobody reads", func(context.Context) error {
		if n := w.server.Loading(); n > 0 {
			return fmt.Errorf("%d pagers", n)
		}
		return nil
	})
	later := refs.New(w.bucket, refs.Config{
		Clock: func() time.Time { return time.Now().Add(2 * refs.DefaultTTL) }, Roots: []string{"engines/", "images/"},
	})
	if _, err := later.Sweep(t.Context(), refs.Options{Audit: true}); err != nil {
		t.Fatal(err)
	}
	left, _, err := w.bucket.List(t.Context(), "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range left {
		t.Errorf("%s is left in the bucket (%d bytes)", o.Key, o.Size)
	}
}
