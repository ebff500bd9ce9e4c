// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/bucket/s3"
	"github.com/opencomputer/oc/internal/store/refs"
	"github.com/opencomputer/oc/test/harness"
)

// remote is a bucket at an S3 server, and a link that servers reach it by.
type remote struct {
	t      *testing.T
	server *buckettest.S3
	link   *buckettest.Proxy
	bucket *s3.Bucket // not by the link
}

func startRemote(t *testing.T) *remote {
	t.Helper()
	r := &remote{t: t, server: buckettest.StartS3(t)}
	r.link = buckettest.StartProxy(t, r.server.Endpoint())
	config := r.server.Config()
	config.URL += "/prefix"
	var err error
	r.bucket, err = s3.Open(t.Context(), config)
	must(t, err)
	t.Cleanup(r.bucket.Close)
	return r
}

// use brings up a server of its own that keeps checkpoints in the bucket.
func (r *remote) use(settings harness.Settings) *harness.Server {
	r.t.Helper()
	all := harness.Settings{"store": r.server.Config().URL + "/prefix", "store-endpoint": r.link.URL()}
	for k, v := range settings {
		all[k] = v
	}
	s := ownServer(r.t, "", all, r.env()...)
	r.t.Cleanup(func() { r.link.SetLink(buckettest.Link{}) }) // before it is closed
	return s
}

// env holds the credentials.
func (r *remote) env() []string {
	c := r.server.Config()
	return []string{"AWS_ACCESS_KEY_ID=" + c.AccessKey, "AWS_SECRET_ACCESS_KEY=" + c.SecretKey, "AWS_EC2_METADATA_DISABLED=true"}
}

// stored is how many bytes are in the bucket.
func (r *remote) stored() (n int64) {
	r.t.Helper()
	for after, more := "", true; more; {
		page, m, err := r.bucket.List(r.t.Context(), "", after, 0)
		must(r.t, err)
		for _, o := range page {
			n += o.Size
			after = o.Key
		}
		more = m
	}
	return n
}

// received is how many bytes came over the link.
func (r *remote) received() int64 {
	_, back := r.link.Bytes()
	return back
}

// images gives the files of the server's images.
func images(t *testing.T, s *harness.Server) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Data, "images", "*"))
	must(t, err)
	return files
}

// sound wants a check of the store that reads everything to find nothing.
func sound(t *testing.T, s *harness.Server) client.StoreReport {
	t.Helper()
	report := asJSON[client.StoreReport](t, s, "store", "check", "--read-data")
	if len(report.Problems) > 0 || report.Checkpoints == 0 {
		t.Errorf("the store is not sound: %+v", report)
	}
	return report
}

// TestCheckpointsInABucket does everything with a store in S3, beside another
// server that uses the same bucket.
func TestCheckpointsInABucket(t *testing.T) {
	t.Parallel()
	r := startRemote(t)
	s := r.use(nil)
	b := create(t, s)
	b.count()
	first := b.checkpoint("small")
	small := r.stored()
	b.heap(40, 31)
	sum := b.heapSum()
	cp := b.checkpoint("heap")
	b.sh("echo damage >after")
	b.restore(cp)
	b.countOn(5)
	b.ticks()
	for _, x := range append(spawnMany(t, s, cp, 2), r.fork(b)) {
		x.countOn(5)
		x.ticks()
		if got := x.heapSum(); got != sum {
			t.Errorf("the heap of %s is %s, not %s", x.id, got, sum)
		}
		oc(t, s, "kill", x.id)
	}

	stats := asJSON[client.StoreStats](t, s, "store", "stats")
	if stats.Where != "s3://objects/prefix" || stats.Checkpoints < 2 || stats.StoredBytes < 40<<20 || stats.Sealed {
		t.Errorf("stats: %+v", stats)
	}
	sound(t, s)

	other := r.use(nil)
	x := create(t, other)
	x.count()
	theirs := x.checkpoint("of another server")
	for _, server := range []*harness.Server{s, other} {
		for _, args := range [][]string{{"store", "gc", "--dry-run"}, {"store", "gc"}} {
			if swept := asJSON[client.StoreSwept](t, server, args...); swept.Packs > 0 || swept.Unknown > 0 {
				t.Errorf("oc %s: %+v", strings.Join(args, " "), swept)
			}
		}
	}
	refused(t, other, 3, []string{"checkpoint not found"}, "checkpoint", "spawn", cp)

	// Nothing is left on this machine but what runs.
	uncache(t, s)
	for _, file := range images(t, s) {
		must(t, os.RemoveAll(file))
	}
	restart(t, s)
	b.restore(cp)
	b.countOn(5)
	if got := b.heapSum(); got != sum {
		t.Errorf("the heap is %s, not %s", got, sum)
	}
	for _, file := range images(t, s) {
		must(t, os.RemoveAll(file))
	}
	var done, all int64
	again, err := api(t, s).SpawnCheckpointWatched(t.Context(), cp, client.SpawnRequest{}, func(n, of int64) { done, all = n, of })
	must(t, err)
	if done == 0 || done != all {
		t.Errorf("the spawn that had to fetch the image told of %d of %d bytes", done, all)
	}
	oc(t, s, "kill", again.ID)

	for _, c := range asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id) {
		if c.ID != first {
			oc(t, s, "checkpoint", "delete", b.id, c.ID)
		}
	}
	await(t, "the space is given back", func() bool { return r.stored() < small+20<<20 })
	spawn(t, s, first).answers()
	spawn(t, other, theirs).countOn(5)
	if report := sound(t, other); report.Leftovers > 0 {
		t.Errorf("%d objects of %d bytes are left", report.Leftovers, report.LeftBytes)
	}
}

// fork forks a sandbox once.
func (r *remote) fork(b box) box {
	r.t.Helper()
	res, err := api(r.t, b.s).ForkSandbox(r.t.Context(), b.id, client.SpawnRequest{})
	must(r.t, err)
	await(r.t, "the fork's checkpoint is ready", func() bool {
		for _, c := range asJSON[[]client.Checkpoint](r.t, b.s, "checkpoint", "list", b.id) {
			if c.Status == client.CheckpointProcessing {
				return false
			}
		}
		return true
	})
	return adopt(r.t, b.s, res.Sandboxes[0].ID)
}

// upload begins a checkpoint, waits until a part of it is in the bucket, and
// gives its end.
func (r *remote) upload(b box, name string) <-chan harness.Output {
	r.t.Helper()
	before := r.stored()
	done := make(chan harness.Output, 1)
	go func() {
		out, err := b.s.Run(r.t.Context(), nil, "checkpoint", "create", b.id, "--name", name)
		if err != nil {
			out.Stderr += err.Error()
		}
		done <- out
	}()
	await(r.t, "it is being uploaded", func() bool { return r.stored() > before+8<<20 })
	return done
}

// TestKillWithoutTheStore ends a server and its sandboxes when the S3 server is
// gone for good, amid a checkpoint: they must not need it to be ended. That
// nothing is left of them, the closing of the server tells.
func TestKillWithoutTheStore(t *testing.T) {
	t.Parallel()
	r := startRemote(t)
	s := r.use(nil)
	b := create(t, s)
	b.checkpoint("first")
	b.heap(60, 32)
	r.link.SetLink(buckettest.Link{Rate: 20 << 20})
	uploading := r.upload(b, "the store goes")
	r.server.Stop()
	if out := oc(t, s, "down", "--kill"); !strings.Contains(out, "1 sandboxes killed") {
		t.Errorf("the sandbox was not killed: %s", out)
	}
	if out := <-uploading; out.Code == 0 {
		t.Errorf("a checkpoint that cannot be stored: %s", out)
	}
}

// TestUploadIsBrokenOff stops the S3 server in the middle of a checkpoint, and
// kills the node's server in another.
func TestUploadIsBrokenOff(t *testing.T) {
	t.Parallel()
	r := startRemote(t)
	s := r.use(nil)
	b := create(t, s)
	b.count()
	first := b.checkpoint("small")
	small := r.stored()
	b.heap(60, 32)

	slow := buckettest.Link{Rate: 20 << 20}
	r.link.SetLink(slow)
	uploading := r.upload(b, "the store goes")
	r.server.Stop()
	b.countOn(5)
	must(t, r.server.Start(t.Context()))
	out := <-uploading
	b.countOn(5)
	b.ticks()
	if out.Code != 0 {
		t.Errorf("a store that came back: %s", out)
	}
	whole := asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id)[0]
	if whole.Status != client.CheckpointReady {
		t.Fatalf("it is %s: %s", whole.Status, whole.ErrorMsg)
	}
	oc(t, s, "checkpoint", "delete", b.id, whole.ID)
	await(t, "the space is given back", func() bool { return r.stored() < small+8<<20 })
	b.sh("kill $(cat heap.pid); rm heap.pid")
	b.heap(60, 33)
	sum := b.heapSum()

	uploading = r.upload(b, "the server goes")
	crash(t, s)
	<-uploading
	r.link.SetLink(buckettest.Link{})
	must(t, s.Up(t.Context()))
	b.countOn(5)
	b.ticks()
	if got := b.heapSum(); got != sum {
		t.Errorf("the heap is %s, not %s", got, sum)
	}
	cut := asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id)[0]
	if cut.Status != client.CheckpointFailed || !strings.Contains(cut.ErrorMsg, "server ended") {
		t.Errorf("it is %s: %q", cut.Status, cut.ErrorMsg)
	}
	spawn(t, s, first).countOn(5)

	// The dead server's claim holds what was written until it expires.
	await(t, "the spawn is loaded", func() bool { return s.Loading() == 0 })
	left := r.stored()
	if swept := asJSON[client.StoreSwept](t, s, "store", "gc"); swept.Bytes > 1<<20 {
		t.Errorf("a claim that has not expired was not heeded: %+v", swept)
	}
	later := refs.New(r.bucket, refs.Config{Clock: func() time.Time { return time.Now().Add(2 * refs.DefaultTTL) }, Roots: []string{"engines/", "images/"}})
	_, err := later.Sweep(t.Context(), refs.Options{Audit: true})
	must(t, err)
	if freed := left - r.stored(); freed < 8<<20 {
		t.Errorf("%d of %d bytes were freed", freed, left)
	}
	if report := sound(t, s); report.Leftovers > 0 {
		t.Errorf("%d objects of %d bytes are left", report.Leftovers, report.LeftBytes)
	}
}

// TestForkOutlivesItsServer kills the server while the checkpoint of a fork is on its
// way to the bucket: that has failed then, and the fork loads from the captured
// memory to the end, which its pager holds.
func TestForkOutlivesItsServer(t *testing.T) {
	t.Parallel()
	r := startRemote(t)
	s := r.use(harness.Settings{"load-rate": slowLoad})
	b := create(t, s)
	b.heap(50, 17)
	sum := b.heapSum()
	b.count()
	r.link.SetLink(buckettest.Link{Rate: 1 << 20})
	res := asJSON[client.ForkResult](t, s, "fork", b.id, "--timeout", "0")
	fork := adopt(t, s, res.Sandboxes[0].ID)
	if res.Checkpoint.Status != client.CheckpointProcessing || s.Loading() == 0 {
		t.Fatalf("the checkpoint is %s, and %d pagers run: this tests nothing", res.Checkpoint.Status, s.Loading())
	}
	crash(t, s)
	if s.Loading() == 0 {
		t.Error("the pager went with the server")
	}
	r.link.SetLink(buckettest.Link{})
	must(t, s.Up(t.Context()))
	cp, err := api(t, s).GetCheckpoint(t.Context(), res.Checkpoint.ID)
	must(t, err)
	if cp.Status != client.CheckpointFailed || cp.ErrorMsg == "" {
		t.Errorf("the checkpoint of the fork is %s (%q)", cp.Status, cp.ErrorMsg)
	}
	if got := fork.heapSum(); got != sum {
		t.Errorf("the heap of the fork is %s, not %s", got, sum)
	}
	await(t, "the fork is loaded", func() bool { return s.Loading() == 0 })
	for _, x := range []box{b, fork} {
		x.countOn(5)
		x.ticks()
		spawn(t, s, x.checkpoint("after")).countOn(5)
	}
}
