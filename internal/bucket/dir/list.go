// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencomputer/oc/internal/bucket"
)

// maxPage is how many objects a list gives at a time.
const maxPage = 1000

// List implements bucket.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, after string, limit int) ([]bucket.Object, bool, error) {
	if err := bucket.CheckPrefix(prefix); err != nil {
		return nil, false, err
	}
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	l := lister{b: b, prefix: prefix, after: after, limit: limit}
	dir, _ := path.Split(prefix)
	if err := l.walk(ctx, dir); err != nil {
		return nil, false, fmt.Errorf("bucket: listing %s: %w", prefix, err)
	}
	if len(l.page) > limit {
		return l.page[:limit], true, nil
	}
	return l.page, false, nil
}

// lister collects one object more than the limit, if there are.
type lister struct {
	b             *Bucket
	prefix, after string
	limit         int
	page          []bucket.Object
}

// walk adds the objects below a directory, which is "" or ends with '/'.
func (l *lister) walk(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(l.b.path(dir))
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	keys := make([]string, 0, len(entries))
	for _, e := range entries {
		key := dir + e.Name()
		switch {
		case bucket.CheckKey(key) != nil || !e.IsDir() && !e.Type().IsRegular():
			continue // ours, or nothing of a bucket
		case e.IsDir():
			key += "/" // sorts as the keys below it do
		}
		if l.wanted(key, e) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return err
		}
		if strings.HasSuffix(key, "/") {
			err = l.walk(ctx, key)
		} else {
			err = l.add(key)
		}
		if err != nil || len(l.page) > l.limit {
			return err
		}
	}
	return nil
}

// wanted tells whether a key, or a key below a directory, can be in the page.
func (l *lister) wanted(key string, e fs.DirEntry) bool {
	if e.IsDir() {
		return (strings.HasPrefix(key, l.prefix) || strings.HasPrefix(l.prefix, key)) &&
			(key > l.after || strings.HasPrefix(l.after, key))
	}
	return strings.HasPrefix(key, l.prefix) && key > l.after
}

// add adds an object to the page, unless it is gone meanwhile.
func (l *lister) add(key string) error {
	f, err := os.Open(l.b.path(key))
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	etag, err := etagOf(f)
	if err != nil {
		return err
	}
	l.page = append(l.page, bucket.Object{Key: key, ETag: etag, Size: st.Size()})
	return nil
}
