// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

func testTemplates(t *testing.T, d database) {
	db := withClock(d.open(t))
	ctx := t.Context()
	org := newOrg(t, db, "a")
	builtin := Template{Name: "base", Status: "ready", TreeHash: "t0", SizeBytes: 9}
	must(t, db.InsertTemplate(ctx, &builtin))
	got, err := db.Template(ctx, org.ID, "base")
	must(t, err)
	expectEqual(t, got, builtin)

	// An org's own goes before the built-in one of the same name.
	own := Template{OrgID: org.ID, Name: "base", Status: "building"}
	must(t, db.InsertTemplate(ctx, &own))
	must(t, db.InsertTemplate(ctx, &Template{OrgID: org.ID, Name: "app"}))
	got, err = db.Template(ctx, org.ID, "base")
	must(t, err)
	expectEqual(t, got, own)
	got, err = db.Template(ctx, "", "base")
	must(t, err)
	expectEqual(t, got, builtin)
	list, err := db.Templates(ctx, org.ID)
	must(t, err)
	expectEqual(t, ids(list, func(t Template) string { return t.Name }), []string{"app", "base", "base"})
	expectEqual(t, list[1].ID, own.ID)
	all, err := db.TemplatesAnyOrg(ctx)
	must(t, err)
	expectEqual(t, len(all), 3)

	again := Template{OrgID: org.ID, Name: "base"}
	expectFault(t, db.InsertTemplate(ctx, &again), fault.Conflict, "template name already exists: base")

	// A use is not undone by a writer with an older copy.
	must(t, db.TouchTemplate(ctx, own.ID, at(50)))
	own.Status, own.ErrorMsg = "failed", "no space"
	must(t, db.UpdateTemplate(ctx, &own))
	got, err = db.Template(ctx, org.ID, "base")
	must(t, err)
	used := at(50)
	own.LastUsedAt = &used
	expectEqual(t, got, own)
	own.Name = "app"
	expectFault(t, db.UpdateTemplate(ctx, &own), fault.Conflict, "template name already exists: app")

	must(t, db.DeleteTemplateRow(ctx, own.ID))
	must(t, db.DeleteTemplateRow(ctx, own.ID))
	expectFault(t, db.TouchTemplate(ctx, own.ID, at(0)), fault.NotFound, "template not found")
}

func testImages(t *testing.T, d database) {
	db := withClock(d.open(t))
	ctx := t.Context()
	i := Image{Hash: "h", TreeHash: "t", AgentHash: "a", SizeBytes: 1}
	must(t, db.UpsertImage(ctx, &i))
	later := Image{Hash: "h", TreeHash: "t", AgentHash: "a", SizeBytes: 2}
	must(t, db.UpsertImage(ctx, &later))
	got, err := db.Image(ctx, "h")
	must(t, err)
	i.SizeBytes = 2
	expectEqual(t, got, i)
	must(t, db.UpsertImage(ctx, &Image{Hash: "a", TreeHash: "t"}))
	list, err := db.Images(ctx)
	must(t, err)
	expectEqual(t, ids(list, func(i Image) string { return i.Hash }), []string{"h", "a"})
	must(t, db.DeleteImageRow(ctx, "h"))
	must(t, db.DeleteImageRow(ctx, "h"))
	_, err = db.Image(ctx, "h")
	expectFault(t, err, fault.NotFound, "image not found")
}

func testUse(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	org, other := newOrg(t, db, "a"), newOrg(t, db, "b")
	expect := func(tree, image Use) {
		t.Helper()
		gotTree, err := db.TreeInUse(ctx, "tree")
		must(t, err)
		gotImage, err := db.ImageInUse(ctx, "image")
		must(t, err)
		expectEqual(t, []Use{gotTree, gotImage}, []Use{tree, image})
		expectEqual(t, gotTree.Any(), tree != Use{})
	}
	expect(Use{}, Use{})

	tpl := Template{OrgID: org.ID, Name: "base", TreeHash: "tree"}
	must(t, db.InsertTemplate(ctx, &tpl))
	expect(Use{Templates: 1}, Use{})
	// A sandbox that is being made has nothing but the template's name yet.
	pending := Sandbox{OrgID: org.ID, Template: "base", State: SandboxPending}
	must(t, db.InsertSandbox(ctx, &pending))
	must(t, db.InsertSandbox(ctx, &Sandbox{OrgID: other.ID, Template: "base", State: SandboxPending}))
	expect(Use{Templates: 1, Sandboxes: 1}, Use{})

	must(t, db.UpsertImage(ctx, &Image{Hash: "image", TreeHash: "tree"}))
	pending.State = SandboxRunning
	must(t, db.UpdateSandbox(ctx, &pending))
	g := Generation{SandboxID: pending.ID, ImageHash: "image", State: GenerationEnding}
	must(t, db.InsertGeneration(ctx, &g))
	expect(Use{Templates: 1, Sandboxes: 1}, Use{Sandboxes: 1})
	must(t, db.DeleteGeneration(ctx, g.ID))
	must(t, db.DeleteTemplateRow(ctx, tpl.ID))
	expect(Use{}, Use{})

	for _, tt := range []struct {
		status CheckpointStatus
		uses   int
	}{{CheckpointFailed, 0}, {CheckpointDeleting, 0}, {CheckpointProcessing, 1}, {CheckpointReady, 1}, {CheckpointDamaged, 1}} {
		c := Checkpoint{
			OrgID: org.ID, SandboxID: pending.ID, Name: "n", Status: tt.status, TreeHash: "tree", ImageHash: "image",
		}
		must(t, db.InsertCheckpoint(ctx, &c, 0))
		expect(Use{Checkpoints: tt.uses}, Use{Checkpoints: tt.uses})
		must(t, db.DeleteCheckpointRow(ctx, c.ID))
	}
}
