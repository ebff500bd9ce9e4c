// SPDX-License-Identifier: Apache-2.0

// Package buckettest is what tests and benchmarks of buckets need: a suite that
// every bucket passes (Conformance), a bucket in memory (Memory), one that
// fails on demand (Faulty), a real S3 server (S3), and a bad link to it (Proxy).
//
// It is for tests alone: nothing of the product imports it.
package buckettest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/opencomputer/oc/internal/bucket"
)

// Memory is a bucket in memory. The zero value is empty and ready.
type Memory struct {
	mu      sync.Mutex
	objects map[string][]byte // guarded by mu; the contents never change
}

var _ bucket.Bucket = (*Memory)(nil)

// Put implements bucket.Bucket.
func (m *Memory) Put(ctx context.Context, key string, body []byte, cond bucket.Condition) (string, error) {
	if err := bucket.CheckPut(key, body, cond); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, exists := m.objects[key]
	if cond.Absent && exists || cond.ETag != "" && (!exists || version(old) != cond.ETag) {
		return "", fmt.Errorf("bucket: writing %s: %w", key, bucket.ErrCondition)
	}
	if m.objects == nil {
		m.objects = map[string][]byte{}
	}
	m.objects[key] = slices.Clone(body)
	return version(body), nil
}

// Get implements bucket.Bucket.
func (m *Memory) Get(ctx context.Context, key string) ([]byte, string, error) {
	body, err := m.find(ctx, key)
	if err != nil {
		return nil, "", err
	}
	return slices.Clone(body), version(body), nil
}

// ReadAt implements bucket.Bucket.
func (m *Memory) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	body, err := m.find(ctx, key)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > int64(len(body)) {
		return fmt.Errorf("bucket: reading %s: %w", key, io.ErrUnexpectedEOF)
	}
	copy(p, body[off:])
	return nil
}

// List implements bucket.Bucket.
func (m *Memory) List(ctx context.Context, prefix, after string, limit int) ([]bucket.Object, bool, error) {
	if err := bucket.CheckPrefix(prefix); err != nil {
		return nil, false, err
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	if limit <= 0 || limit > 1000 {
		limit = 1000
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var page []bucket.Object
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		if !strings.HasPrefix(key, prefix) || key <= after {
			continue
		}
		if len(page) == limit {
			return page, true, nil
		}
		body := m.objects[key]
		page = append(page, bucket.Object{Key: key, ETag: version(body), Size: int64(len(body))})
	}
	return page, false, nil
}

// Delete implements bucket.Bucket.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

func (m *Memory) find(ctx context.Context, key string) ([]byte, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	body, ok := m.objects[key]
	if !ok {
		return nil, fmt.Errorf("bucket: %s: %w", key, bucket.ErrNotExist)
	}
	return body, nil
}

func version(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:16])
}
