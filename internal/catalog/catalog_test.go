// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/template"
)

const org = "org-1"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newCatalog(t *testing.T) *Catalog {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("making templates needs root: run the tests with sudo")
	}
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	db, err := meta.Open(t.Context(), filepath.Join(dir, "meta.db"), log)
	must(t, err)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := template.New(dir, log)
	must(t, err)
	return New(db, b, []byte("agent"), dir, log)
}

// rootfs is the archive of a root file system whose one file has the content.
func rootfs(t *testing.T, content string) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	must(t, w.WriteHeader(&tar.Header{Name: "etc/content", Mode: 0o644, Size: int64(len(content))}))
	_, err := io.WriteString(w, content)
	must(t, err)
	must(t, w.Close())
	return &buf
}

func imported(t *testing.T, c *Catalog, name, content string) meta.Template {
	t.Helper()
	made, err := c.Import(t.Context(), org, name, rootfs(t, content), nil)
	must(t, err)
	return made
}

// addImage takes in an image of a tree, and gives its hash.
func addImage(t *testing.T, c *Catalog, content, tree string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(content))
	hash := hex.EncodeToString(sum[:])
	must(t, c.Add(t.Context(), hash, tree, strings.NewReader(content)))
	return hash
}

func newSandbox(t *testing.T, c *Catalog) meta.Sandbox {
	t.Helper()
	owner, err := c.meta.EnsureOrg(t.Context(), "owner")
	must(t, err)
	sb := meta.Sandbox{OrgID: owner.ID, Template: "mine", State: meta.SandboxRunning}
	must(t, c.meta.InsertSandbox(t.Context(), &sb))
	return sb
}

// later lets the time pass for which images stay that were asked for.
func later(c *Catalog) {
	c.now = func() time.Time { return time.Now().Add(2 * askedGrace) }
}

func trees(t *testing.T, c *Catalog) []string {
	t.Helper()
	hashes, err := c.builder.Trees()
	must(t, err)
	return hashes
}

// TestBuildIsShared asks for the default template twice at once: one build, of which
// both hear, and which goes on without them.
func TestBuildIsShared(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	var runs, heard atomic.Int32
	release := make(chan struct{})
	archive := filepath.Join(t.TempDir(), "rootfs.tar")
	content, err := io.ReadAll(rootfs(t, "base"))
	must(t, err)
	must(t, os.WriteFile(archive, content, 0o600))
	c.recipe = func(string) recipe {
		return func(ctx context.Context, say template.Progress) (template.Tree, error) {
			runs.Add(1)
			for heard.Load() != 3 { // until both listen
				say("unpacking")
				runtime.Gosched()
			}
			<-release
			return c.builder.Import(ctx, archive, say)
		}
	}
	ask := func(ctx context.Context, bit int32) error {
		_, err := c.Resolve(ctx, org, "", func(string) { heard.Or(bit) })
		return err
	}
	impatient, leave := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- ask(impatient, 1) }()
	go func() { done <- ask(t.Context(), 2) }()
	for heard.Load() != 3 {
		runtime.Gosched()
	}
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("who went away: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("who waited: %v", err)
	}
	if runs.Load() != 1 {
		t.Errorf("%d builds", runs.Load())
	}
	if err := ask(t.Context(), 0); err != nil || runs.Load() != 1 {
		t.Errorf("when it is there: %v, %d builds", err, runs.Load())
	}
}

// TestReimportKeepsTheOldTree until the new one is there.
func TestReimportKeepsTheOldTree(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	old := imported(t, c, "mine", "old")
	meanwhile := func(what string) {
		t.Helper()
		c.collect(t.Context()) // what a periodic round does
		list, err := c.List(t.Context(), org)
		must(t, err)
		if len(list) != 1 || list[0].Status != statusReady || list[0].TreeHash != old.TreeHash {
			t.Errorf("%s: the templates are %+v", what, list)
		}
		if _, err := c.Resolve(t.Context(), org, "mine", nil); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.Import(t.Context(), org, "mine", strings.NewReader("no archive"), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("importing no archive: %v", err)
	}
	meanwhile("after an import that failed")
	var said []string
	made, err := c.Import(t.Context(), org, "mine", rootfs(t, "new"), func(line string) {
		said = append(said, line)
		meanwhile("while it says " + line)
	})
	must(t, err)
	if len(said) == 0 || made.TreeHash == old.TreeHash {
		t.Errorf("said %q, tree %s", said, made.TreeHash)
	}
	if got := trees(t, c); !slices.Equal(got, []string{made.TreeHash}) {
		t.Errorf("trees %q; the template is %s", got, made.TreeHash)
	}
}

// TestImportsAtOnce leave one tree between them.
func TestImportsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	imported(t, c, "mine", "first")
	var both sync.WaitGroup
	both.Add(2)
	var done sync.WaitGroup
	for _, content := range []string{"second", "third"} {
		archive, met := rootfs(t, content), sync.OnceFunc(func() { both.Done(); both.Wait() })
		done.Go(func() {
			if _, err := c.Import(t.Context(), org, "mine", archive, func(string) { met() }); err != nil {
				t.Errorf("%s: %v", content, err)
			}
		})
	}
	done.Wait()
	list, err := c.List(t.Context(), org)
	must(t, err)
	if got := trees(t, c); len(list) != 1 || !slices.Equal(got, []string{list[0].TreeHash}) {
		t.Errorf("trees %q of %+v", got, list)
	}
}

// TestSweepKeepsWhatIsNeeded makes an image for each thing that may need one.
func TestSweepKeepsWhatIsNeeded(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	mine := imported(t, c, "mine", "mine")
	sb := newSandbox(t, c)
	checkpoint := func(hash string, status meta.CheckpointStatus) {
		must(t, c.meta.InsertCheckpoint(t.Context(), &meta.Checkpoint{OrgID: sb.OrgID, SandboxID: sb.ID, Name: hash, Status: status, ImageHash: hash}, 0))
	}
	for _, tt := range []struct {
		name  string
		need  func(hash string)
		stays bool
	}{
		{"of nothing", func(string) {}, false},
		{"of a template's next sandbox", func(hash string) {
			must(t, c.meta.UpsertImage(t.Context(), &meta.Image{Hash: hash, TreeHash: mine.TreeHash, AgentHash: c.agentHash}))
		}, true},
		{"of a template with an earlier agent", func(hash string) {
			must(t, c.meta.UpsertImage(t.Context(), &meta.Image{Hash: hash, TreeHash: mine.TreeHash, AgentHash: "earlier"}))
		}, false},
		{"of a tree that no template is", func(hash string) {
			must(t, c.meta.UpsertImage(t.Context(), &meta.Image{Hash: hash, TreeHash: "gone", AgentHash: c.agentHash}))
		}, false},
		{"without a row", func(hash string) { must(t, c.meta.DeleteImageRow(t.Context(), hash)) }, false},
		{"of a sandbox", func(hash string) {
			must(t, c.meta.InsertGeneration(t.Context(), &meta.Generation{SandboxID: sb.ID, State: meta.GenerationLive, ImageHash: hash}))
		}, true},
		{"of a checkpoint", func(hash string) { checkpoint(hash, meta.CheckpointReady) }, true},
		{"of a damaged checkpoint", func(hash string) { checkpoint(hash, meta.CheckpointDamaged) }, true},
		{"of a failed checkpoint", func(hash string) { checkpoint(hash, meta.CheckpointFailed) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hash := addImage(t, c, tt.name, "elsewhere")
			tt.need(hash)
			must(t, c.sweep(t.Context()))
			if _, err := c.builder.FindImage(hash); err != nil {
				t.Errorf("just asked for: %v", err)
			}
			later(c)
			must(t, c.sweep(t.Context()))
			c.now = time.Now
			_, err := c.builder.FindImage(hash)
			if stays := err == nil; stays != tt.stays {
				t.Errorf("the file stays: %v (%v)", stays, err)
			}
			if _, err := c.meta.Image(t.Context(), hash); (err == nil) != tt.stays {
				t.Errorf("the row: %v", err)
			}
			if path, err := c.Path(t.Context(), hash); (err == nil) != tt.stays || err == nil && path == "" {
				t.Errorf("its path: %q, %v", path, err)
			}
		})
	}
	if got := trees(t, c); !slices.Equal(got, []string{mine.TreeHash}) {
		t.Errorf("trees %q", got)
	}
}

// TestSweepWaitsForWhoMakes leaves a tree whose row is not there yet.
func TestSweepWaitsForWhoMakes(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	made := imported(t, c, "mine", "mine")
	c.making.RLock()
	must(t, c.meta.DeleteTemplateRow(t.Context(), made.ID))
	must(t, c.sweep(t.Context()))
	if got := trees(t, c); len(got) != 1 {
		t.Errorf("trees %q while somebody makes one", got)
	}
	c.making.RUnlock()
	must(t, c.sweep(t.Context()))
	if got := trees(t, c); len(got) != 0 {
		t.Errorf("trees %q of no template", got)
	}
}

// TestStartFailsUnfinishedBuilds of a server that died.
func TestStartFailsUnfinishedBuilds(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	ready := imported(t, c, "ready", "ready")
	must(t, c.meta.InsertTemplate(t.Context(), &meta.Template{OrgID: org, Name: "half", Status: statusBuilding}))
	must(t, c.Start(t.Context()))
	for name, want := range map[string]string{ready.Name: statusReady, "half": statusFailed} {
		if row, err := c.meta.Template(t.Context(), org, name); err != nil || row.Status != want {
			t.Errorf("%s: %+v, %v", name, row, err)
		}
	}
	_, err := c.Resolve(t.Context(), org, "half", nil)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "the server ended while it was being built") {
		t.Errorf("a sandbox of it: %v", err)
	}
	imported(t, c, "half", "whole")
	if _, err := c.Resolve(t.Context(), org, "half", nil); err != nil {
		t.Errorf("imported again: %v", err)
	}
}

func TestImportChecksTheName(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	for name, want := range map[string]string{
		"": "not valid", "Upper": "not valid", "-dash": "not valid", ".dot": "not valid", "a/b": "not valid", "ä": "not valid",
		strings.Repeat("a", 64): "not valid", "a\n": "not valid",
		"base": "reserved", "default": "reserved", "ubuntu": "reserved", "python": "reserved", "node": "reserved",
	} {
		if _, err := c.Import(t.Context(), org, name, rootfs(t, "x"), nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
	for _, name := range []string{"a", "0", "my-template_1.2", strings.Repeat("a", 63)} {
		imported(t, c, name, "x")
	}
	if _, err := c.Build(t.Context(), org, "mine", nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("building what there is no recipe for: %v", err)
	}
}

// TestDelete removes a template with its tree and image, when nothing needs them.
func TestDelete(t *testing.T) {
	t.Parallel()
	c := newCatalog(t)
	made := imported(t, c, "mine", "mine")
	img, err := c.Resolve(t.Context(), org, "mine", nil)
	must(t, err)
	sb := newSandbox(t, c)
	gen := meta.Generation{SandboxID: sb.ID, State: meta.GenerationLive, ImageHash: img.Hash}
	must(t, c.meta.InsertGeneration(t.Context(), &gen))
	if err := c.Delete(t.Context(), org, "mine"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "1 sandboxes") {
		t.Errorf("while a sandbox runs on it: %v", err)
	}
	if err := c.Delete(t.Context(), "another", "mine"); !fault.Is(err, fault.NotFound) {
		t.Errorf("of another org: %v", err)
	}
	must(t, c.meta.DeleteGeneration(t.Context(), gen.ID))
	later(c)
	must(t, c.Delete(t.Context(), org, "mine"))
	if got := trees(t, c); len(got) != 0 {
		t.Errorf("trees %q; it was %s", got, made.TreeHash)
	}
	if _, err := c.builder.FindImage(img.Hash); !fault.Is(err, fault.NotFound) {
		t.Errorf("its image: %v", err)
	}
	if list, err := c.List(t.Context(), org); err != nil || len(list) != 0 {
		t.Errorf("templates %+v, %v", list, err)
	}
	if err := c.Delete(t.Context(), org, "mine"); !fault.Is(err, fault.NotFound) {
		t.Errorf("again: %v", err)
	}
}
