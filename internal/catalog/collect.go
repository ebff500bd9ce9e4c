// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"errors"
	"time"

	"github.com/opencomputer/oc/internal/meta"
)

// collectEvery is how often what nothing needs any more is looked for.
const collectEvery = 5 * time.Minute

// askedGrace is for how long an image is kept that was asked for: what needs it
// has a row only later, the import of a large checkpoint much later.
const askedGrace = time.Hour

// Collect removes the trees and images that nothing needs any more, now and every
// few minutes, until ctx ends.
func (c *Catalog) Collect(ctx context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		c.collect(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Catalog) collect(ctx context.Context) {
	if err := c.sweep(ctx); err != nil && ctx.Err() == nil {
		c.log.Error("removing unused templates and images", "error", err)
	}
}

// sweep is one round. It does nothing while a tree or an image is made that has no
// row yet; there is always a next one.
func (c *Catalog) sweep(ctx context.Context) error {
	if !c.making.TryLock() {
		return nil
	}
	defer c.making.Unlock()
	templates, err := c.meta.TemplatesAnyOrg(ctx)
	if err != nil {
		return err
	}
	named := map[string]bool{} // the trees that templates are
	for _, t := range templates {
		named[t.TreeHash] = true
	}
	return errors.Join(c.sweepImages(ctx, named), c.sweepTrees(named))
}

func (c *Catalog) sweepTrees(named map[string]bool) error {
	trees, err := c.builder.Trees()
	errs := []error{err}
	for _, hash := range trees {
		if !named[hash] {
			c.log.Info("removing an unused template tree", "tree", hash)
			errs = append(errs, c.builder.RemoveTree(hash))
		}
	}
	return errors.Join(errs...)
}

// sweepImages looks at the images with a row and at those with only a file.
func (c *Catalog) sweepImages(ctx context.Context, named map[string]bool) error {
	rows, err := c.meta.Images(ctx)
	if err != nil {
		return err
	}
	files, err := c.builder.Images()
	if err != nil {
		return err
	}
	rowOf := map[string]meta.Image{}
	for _, hash := range files {
		rowOf[hash] = meta.Image{}
	}
	for _, img := range rows {
		rowOf[img.Hash] = img
	}
	c.forgetAsked()
	var errs []error
	for hash, row := range rowOf {
		if row.AgentHash == c.agentHash && named[row.TreeHash] {
			continue // the next sandbox of the template runs on it
		}
		errs = append(errs, c.sweepImage(ctx, hash, row.Hash != ""))
	}
	return errors.Join(errs...)
}

func (c *Catalog) sweepImage(ctx context.Context, hash string, hasRow bool) error {
	use, err := c.meta.ImageInUse(ctx, hash)
	if err != nil || use.Any() {
		return err
	}
	// Who needs it since has asked for it first.
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.asked[hash]; ok {
		return nil
	}
	c.log.Info("removing an unused image", "image", hash)
	if err := c.builder.RemoveImage(hash); err != nil || !hasRow {
		return err
	}
	return c.meta.DeleteImageRow(ctx, hash)
}

// forgetAsked drops what was asked for long ago.
func (c *Catalog) forgetAsked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for hash, at := range c.asked {
		if c.now().Sub(at) > askedGrace {
			delete(c.asked, hash)
		}
	}
}
