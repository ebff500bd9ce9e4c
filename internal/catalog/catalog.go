// SPDX-License-Identifier: Apache-2.0

// Package catalog is the templates by name: which there are, whose they are,
// which tree each one is, and whether something still needs it.
//
// Invariants: a name becomes ready only when its tree is complete; a tree stays
// while a template is it, an image while the next sandbox of a template would run
// on it, or a sandbox or checkpoint rests on it, and goes within minutes when none
// does; two requests for the same missing template share one build.
//
// Trees and images are made by package template; rows are kept by package meta.
// The package knows neither HTTP nor the engine.
package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/template"
)

// Base is the name of the default template.
const Base = "base"

// aliases are other names that clients use for the default template.
var aliases = []string{"", "default", "ubuntu", "python", "node"}

// Catalog is the templates of a node.
type Catalog struct {
	meta      *meta.DB
	builder   *template.Builder
	recipe    func(name string) recipe // nil where there is none
	agent     []byte
	agentHash string
	tmp       string
	log       *slog.Logger
	now       func() time.Time

	// making is shared by those who make a tree or an image that has no row yet.
	making sync.RWMutex

	mu     sync.Mutex
	builds map[string]*build    // by name
	asked  map[string]time.Time // when an image was asked for last, by its hash
}

// recipe makes the tree of a built-in template.
type recipe func(context.Context, template.Progress) (template.Tree, error)

var _ sandbox.Images = (*Catalog)(nil)

// New makes a catalog. agent is the agent's binary that images get; tmp a
// directory on the data disk for uploads.
func New(db *meta.DB, b *template.Builder, agent []byte, tmp string, log *slog.Logger) *Catalog {
	sum := sha256.Sum256(agent)
	c := &Catalog{
		meta: db, builder: b, agent: agent, agentHash: hex.EncodeToString(sum[:]), tmp: tmp, log: log, now: time.Now,
		builds: map[string]*build{}, asked: map[string]time.Time{},
	}
	c.recipe = c.builtIn
	return c
}

// Start fails the builds that an earlier server left unfinished.
func (c *Catalog) Start(ctx context.Context) error {
	rows, err := c.meta.TemplatesAnyOrg(ctx)
	if err != nil {
		return err
	}
	for _, t := range rows {
		if t.Status == statusBuilding {
			if err := c.settle(ctx, &t, template.Tree{}, errors.New("the server ended while it was being built")); err != nil {
				return err
			}
		}
	}
	return nil
}

// The statuses of a template.
const (
	statusBuilding = "building"
	statusReady    = "ready"
	statusFailed   = "failed"
)

// List gives the org's templates and the built-in ones, by name.
func (c *Catalog) List(ctx context.Context, orgID string) ([]meta.Template, error) {
	return c.meta.Templates(ctx, orgID)
}

// builtIn gives the recipe of a built-in template.
func (c *Catalog) builtIn(name string) recipe {
	switch name {
	case Base:
		return func(ctx context.Context, p template.Progress) (template.Tree, error) {
			return c.builder.BuildDebian(ctx, template.Base(), p)
		}
	case "small":
		return func(ctx context.Context, p template.Progress) (template.Tree, error) {
			return c.builder.BuildHost(ctx, template.Small(), p)
		}
	}
	return nil
}

// Build makes a built-in template ("base", or "small": a few of this machine's
// own packages) anew. Built-in templates belong to every org.
func (c *Catalog) Build(ctx context.Context, _, name string, progress func(string)) (meta.Template, error) {
	if name == "" {
		name = Base
	}
	build := c.recipe(name)
	if build == nil {
		return meta.Template{}, fault.New(fault.Invalid, "there is no recipe for template %q", name).
			WithHint("recipes: base, small; bring your own with `oc template import`")
	}
	return c.shared(ctx, name, progress, func(say template.Progress) (meta.Template, error) {
		return c.fill(context.WithoutCancel(ctx), "", name, func() (template.Tree, error) {
			return build(context.WithoutCancel(ctx), say)
		})
	})
}

// validName is compiled when it is needed, not in every process of the binary.
var validName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
})

// Import makes a template of an archive: a root file system's tarball, a
// `docker save` archive or an OCI layout.
func (c *Catalog) Import(ctx context.Context, orgID, name string, r io.Reader, progress func(string)) (meta.Template, error) {
	if !validName().MatchString(name) {
		return meta.Template{}, fault.New(fault.Invalid, "template name %.70q is not valid", name).
			WithHint("use 1 to 63 lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit")
	}
	if name == Base || slices.Contains(aliases, name) {
		return meta.Template{}, fault.New(fault.Invalid, "template name %q is reserved", name).WithHint("choose another name")
	}
	f, err := os.CreateTemp(c.tmp, "upload-")
	if err != nil {
		return meta.Template{}, fmt.Errorf("catalog: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Close()); err != nil {
		return meta.Template{}, fault.Wrap(fault.Unavailable, err, "the archive could not be received")
	}
	return c.fill(ctx, orgID, name, func() (template.Tree, error) {
		return c.builder.Import(ctx, f.Name(), progress)
	})
}

// fill makes the row's tree and settles the row. An existing template of the
// name keeps its old tree until the new one is there.
func (c *Catalog) fill(ctx context.Context, orgID, name string, tree func() (template.Tree, error)) (meta.Template, error) {
	t, err := c.row(ctx, orgID, name)
	if err != nil {
		return t, err
	}
	c.making.RLock()
	made, err := tree()
	err = errors.Join(err, c.settle(ctx, &t, made, err))
	c.making.RUnlock()
	if err != nil {
		return t, err
	}
	c.collect(ctx) // the old tree
	return t, nil
}

// row finds or makes the row to be filled.
func (c *Catalog) row(ctx context.Context, orgID, name string) (meta.Template, error) {
	t, err := c.meta.Template(ctx, orgID, name)
	if err == nil && t.OrgID == orgID {
		return t, nil
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return t, err
	}
	t = meta.Template{OrgID: orgID, Name: name, Status: statusBuilding}
	return t, c.meta.InsertTemplate(ctx, &t)
}

// settle records how a build ended. A template that was ready stays so when
// building it anew failed.
func (c *Catalog) settle(ctx context.Context, t *meta.Template, tree template.Tree, why error) error {
	switch {
	case why == nil:
		t.Status, t.ErrorMsg, t.TreeHash, t.SizeBytes = statusReady, "", tree.Hash, tree.SizeBytes
	case t.TreeHash == "":
		t.Status, t.ErrorMsg = statusFailed, why.Error()
		var f *fault.Fault
		if errors.As(why, &f) { // what its caller is told; around it are files of ours
			t.ErrorMsg = f.Message
		}
	default:
		return nil
	}
	return c.meta.UpdateTemplate(context.WithoutCancel(ctx), t)
}

// Resolve implements sandbox.Images. The default template is built when it is
// missing.
func (c *Catalog) Resolve(ctx context.Context, orgID, name string, progress func(string)) (sandbox.Image, error) {
	if slices.Contains(aliases, name) {
		name = Base
	}
	img, err := c.resolve(ctx, orgID, name)
	if name != Base || !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
		return img, err
	}
	if _, err := c.Build(ctx, orgID, name, progress); err != nil {
		return sandbox.Image{}, err
	}
	return c.resolve(ctx, orgID, name)
}

// resolve gives the image of a template that is there: a NotFound or a Conflict
// fault says that it is not.
func (c *Catalog) resolve(ctx context.Context, orgID, name string) (sandbox.Image, error) {
	c.making.RLock()
	defer c.making.RUnlock()
	t, err := c.meta.Template(ctx, orgID, name)
	if err != nil {
		return sandbox.Image{}, err
	}
	if t.TreeHash == "" {
		return sandbox.Image{}, notReady(t)
	}
	tree, err := c.builder.Tree(t.TreeHash)
	if err != nil {
		return sandbox.Image{}, err
	}
	img, err := c.builder.Image(ctx, tree, c.agent)
	if err != nil {
		return sandbox.Image{}, err
	}
	c.ask(img.Hash)
	row := meta.Image{Hash: img.Hash, TreeHash: img.TreeHash, AgentHash: img.AgentHash, SizeBytes: img.SizeBytes}
	if err := errors.Join(c.meta.UpsertImage(ctx, &row), c.meta.TouchTemplate(ctx, t.ID, c.now())); err != nil {
		return sandbox.Image{}, err
	}
	return sandbox.Image{Template: name, TreeHash: img.TreeHash, Hash: img.Hash, Path: img.Path}, nil
}

// ask notes that an image is wanted: it stays for a while, see askedGrace.
func (c *Catalog) ask(hash string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[hash] = c.now()
}

// notReady says that a template has no tree, and why if that is known.
func notReady(t meta.Template) error {
	if t.Status != statusFailed {
		return fault.New(fault.Conflict, "template %s is not ready (status: %s)", t.Name, t.Status).
			WithHint("try again when oc template list says that it is")
	}
	return fault.New(fault.Conflict, "template %s is not ready (status: %s): %s", t.Name, t.Status, t.ErrorMsg).
		WithHint("import or build it again, or use another template")
}

// Path implements sandbox.Images.
func (c *Catalog) Path(_ context.Context, hash string) (string, error) {
	c.mu.Lock() // what is found is asked for before it can go
	defer c.mu.Unlock()
	img, err := c.builder.FindImage(hash)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "image %.12s, which the checkpoint rests on, is not on this machine", hash)
	}
	c.asked[hash] = c.now()
	return img.Path, nil
}

// maxImage bounds an image that comes from elsewhere, in bytes.
const maxImage = 64 << 30

// Add implements sandbox.Images.
func (c *Catalog) Add(ctx context.Context, hash, treeHash string, r io.Reader) error {
	c.making.RLock()
	defer c.making.RUnlock()
	img, err := c.builder.AddImage(ctx, r, hash, maxImage)
	if err != nil {
		return err
	}
	c.ask(hash)
	return c.meta.UpsertImage(ctx, &meta.Image{Hash: hash, TreeHash: treeHash, SizeBytes: img.SizeBytes})
}

// Delete removes a template of the org, or a built-in one; refused while
// sandboxes or checkpoints need its tree.
func (c *Catalog) Delete(ctx context.Context, orgID, name string) error {
	t, err := c.meta.Template(ctx, orgID, name)
	if err != nil {
		return err
	}
	if t.TreeHash != "" {
		use, err := c.meta.TreeInUse(ctx, t.TreeHash)
		if err != nil {
			return err
		}
		if use.Sandboxes+use.Checkpoints > 0 && use.Templates < 2 { // another name may keep the tree
			return fault.New(fault.Conflict, "template %s is used by %d sandboxes and %d checkpoints", name, use.Sandboxes, use.Checkpoints).
				WithHint("kill the sandboxes and delete the checkpoints first")
		}
	}
	if err := c.meta.DeleteTemplateRow(ctx, t.ID); err != nil {
		return err
	}
	c.collect(ctx)
	return nil
}
