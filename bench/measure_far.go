// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencomputer/oc/internal/bucket/buckettest"
)

// farAway is the way to a store in another town.
var farAway = buckettest.Link{Delay: 20 * time.Millisecond, Rate: 50 << 20}

// farLoad bounds how long everything takes to come from there.
const farLoad = 10 * time.Minute

// farStore is a server whose store is far away, when it is told so.
type farStore struct {
	*ours
	link *buckettest.Proxy
}

// far: with nothing in the cache and the store behind a slow link, from the call
// to the first answer of a spawn, and what was fetched until then; beside all of
// it. Once when nobody has restored the checkpoint before, once more when its
// first reads are known.
func (b *bench) far(ctx context.Context, sc *scene) error {
	s3, err := buckettest.NewS3(ctx, filepath.Join(b.dir, "s3"))
	if err != nil {
		return err
	}
	defer func() { s3.Stop(); _ = os.RemoveAll(filepath.Join(b.dir, "s3")) }() // the end removes it too
	link, err := buckettest.NewProxy(ctx, s3.Endpoint())
	if err != nil {
		return err
	}
	defer link.Close()
	c := s3.Config()
	with := settings{
		flags: []string{"--store", c.URL, "--store-endpoint", link.URL()},
		env:   []string{"AWS_ACCESS_KEY_ID=" + c.AccessKey, "AWS_SECRET_ACCESS_KEY=" + c.SecretKey, "AWS_EC2_METADATA_DISABLED=true"},
	}
	return b.own(ctx, with, func(o *ours) error {
		defer link.SetLink(buckettest.Link{}) // before it is closed
		var t farTimes
		err := t.take(ctx, &farStore{o, link}, sc.load, b.few())
		b.promises = append(b.promises, t.promises(sc.load)...)
		return err
	})
}

// farTimes is what spawns took, and what was fetched.
type farTimes struct {
	verified, loaded    sample // times: of a verification, of loading all
	all                 sample // bytes
	first, known        sample // times to the first command
	firstPart, knowPart sample // bytes until then
}

func (t *farTimes) take(ctx context.Context, f *farStore, w workload, runs int) error {
	source, err := newBox(ctx, f, w)
	if err != nil {
		return err
	}
	for range runs {
		f.link.SetLink(buckettest.Link{})
		img, err := f.Checkpoint(ctx, source) // one whose first reads nobody knows
		if err != nil {
			return err
		}
		f.link.SetLink(farAway)
		if err := t.run(ctx, f, img); err != nil {
			return err
		}
	}
	return f.Kill(ctx, source)
}

// run takes the times of one checkpoint.
func (t *farTimes) run(ctx context.Context, f *farStore, img image) error {
	all, err := f.fetch(func() error { _, err := f.server.client.VerifyCheckpoint(ctx, img.id, nil); return err })
	if err != nil {
		return err
	}
	t.verified.addTime(all.took)

	made, answered, err := f.spawnCold(ctx, img)
	if err != nil {
		return err
	}
	t.first.addTime(answered.took)
	t.firstPart.addBytes(answered.bytes)
	rest, err := f.fetched(func() error { return f.loaded(ctx) })
	if err := errors.Join(err, f.Kill(ctx, made...)); err != nil {
		return err
	}
	t.loaded.addTime(answered.took + rest.took)
	t.all.addBytes(answered.bytes + rest.bytes)

	made, answered, err = f.spawnCold(ctx, img)
	if err != nil {
		return err
	}
	t.known.addTime(answered.took)
	t.knowPart.addBytes(answered.bytes)
	if err := f.Kill(ctx, made...); err != nil {
		return err
	}
	return f.loaded(ctx)
}

func (t *farTimes) promises(w workload) []promise {
	const fetching, all = "fetching everything", "everything"
	name := w.name + " from 20 ms and 50 MiB/s away: "
	return []promise{
		{name + "spawn to first command", "ms", t.first, fetching, t.verified, "≤ 0.1"},
		{"– fetched until then", "MiB", t.firstPart, all, t.all, "≤ 0.07"},
		{"– first reads known, to first command", "ms", t.known, fetching, t.verified, "≤ 0.1"},
		{"– fetched until then", "MiB", t.knowPart, all, t.all, "≤ 0.07"},
		{"– until everything is loaded", "ms", t.loaded, fetching, t.verified, ""},
	}
}

// fetched is how long something took, and what came over the link meanwhile.
type fetched struct {
	took  time.Duration
	bytes int64
}

func (f *farStore) fetched(do func() error) (got fetched, err error) {
	_, before := f.link.Bytes()
	got.took, err = timed(do)
	_, after := f.link.Bytes()
	got.bytes = after - before
	return got, err
}

// fetch does something with an empty cache.
func (f *farStore) fetch(do func() error) (fetched, error) {
	cached, err := os.ReadDir(f.server.cache())
	for _, e := range cached {
		err = errors.Join(err, os.RemoveAll(filepath.Join(f.server.cache(), e.Name())))
	}
	if err != nil {
		return fetched{}, err
	}
	return f.fetched(do)
}

func (f *farStore) spawnCold(ctx context.Context, img image) (made []box, got fetched, err error) {
	got, err = f.fetch(func() (err error) { made, err = f.Spawn(ctx, img, 1); return err })
	return made, got, err
}

// loaded waits until no pager of the server's loads anything.
func (f *farStore) loaded(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, farLoad, errors.New("the sandbox does not stop loading"))
	defer cancel()
	for {
		n, err := pagersOf(f.server.data())
		if err != nil || n == 0 {
			return err
		}
		if err := sleep(ctx, settleStep); err != nil {
			return context.Cause(ctx)
		}
	}
}

// pagersOf counts the processes of dir that load checkpoints.
func pagersOf(dir string) (n int, err error) {
	pids, err := processesOf(dir)
	for _, pid := range pids {
		line, err := commandLine(pid)
		if err == nil && strings.Contains(line, "\x00engine-helper\x00restore\x00") {
			n++
		}
	}
	return n, err
}
