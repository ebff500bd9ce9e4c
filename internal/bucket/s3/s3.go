// SPDX-License-Identifier: Apache-2.0

// Package s3 is a bucket at an S3 service: Amazon's or one that is compatible.
//
// It uses what all of them share: PUT of a whole object with If-None-Match and
// If-Match, ranged GET, DELETE, ListObjectsV2. What fails in passing (5xx,
// throttling, a broken or silent connection) is repeated with growing pauses
// until the call's time is over; every call ends within Config.Timeout.
//
// The package must not know what objects mean.
package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/fault"
)

// Bucket is a bucket at an S3 service; it implements bucket.Bucket. Errors that
// are not of the contract are faults where an operator can do something. A
// volatile Put is as durable as any.
type Bucket struct {
	config    Config // resolved, but for credentials that expire
	place     place
	core      *minio.Core
	transport *http.Transport
}

var _ bucket.Bucket = (*Bucket)(nil)

// Open resolves the configuration and makes sure that the bucket is there. It
// fails with a fault that says what to set.
func Open(ctx context.Context, config Config) (*Bucket, error) {
	config, err := config.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	p, err := config.parse()
	if err != nil {
		return nil, err
	}
	b := &Bucket{config: config, place: p, transport: newTransport(config.Timeout)}
	lookup := minio.BucketLookupAuto
	if p.own {
		lookup = minio.BucketLookupPath
	}
	b.core, err = minio.NewCore(p.host, &minio.Options{
		Creds: config.credentials(), Secure: p.secure, Region: config.Region,
		Transport: b.transport, BucketLookup: lookup, MaxRetries: 1, // do repeats
	})
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "S3 bucket %s", config)
	}
	if err := b.check(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// check asks for the bucket. A service that does not answer is given up sooner
// than in operation: whoever starts a server waits.
func (b *Bucket) check(ctx context.Context) error {
	var exists bool
	err := b.doWithin(ctx, b.config.Timeout/4, func(ctx context.Context) (err error) {
		exists, err = b.core.BucketExists(ctx, b.place.bucket)
		return err
	})
	switch code := minio.ToErrorResponse(err).StatusCode; {
	case err == nil && exists:
		return nil
	case err == nil:
		return b.noBucket(nil)
	case code == http.StatusMovedPermanently || code == http.StatusTemporaryRedirect || code == http.StatusBadRequest:
		return fault.Wrap(fault.Invalid, err, "S3 bucket %s is in another region", b.config).WithHint("set AWS_REGION to the bucket's")
	}
	return err
}

func (b *Bucket) noBucket(err error) error {
	return fault.Wrap(fault.Invalid, err, "S3 bucket %s does not exist", b.config).
		WithHint("make it, or correct the URL s3://BUCKET/PREFIX; AWS_ENDPOINT_URL_S3 says where the service is")
}

// Config gives the configuration as Open resolved it, for another process.
func (b *Bucket) Config() Config { return b.config }

// Close gives back the connections that nobody uses.
func (b *Bucket) Close() { b.transport.CloseIdleConnections() }

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body []byte, cond bucket.Condition) (etag string, err error) {
	if err := bucket.CheckPut(key, body, cond); err != nil {
		return "", err
	}
	var opts minio.PutObjectOptions
	switch {
	case cond.Absent:
		opts.SetMatchETagExcept("*")
	case cond.ETag != "":
		opts.SetMatchETag(cond.ETag)
	}
	err = b.do(ctx, func(ctx context.Context) error {
		info, err := b.core.PutObject(ctx, b.place.bucket, b.place.prefix+key, bytes.NewReader(body), int64(len(body)), "", "", opts)
		etag = info.ETag
		return err
	})
	refusal := minio.ToErrorResponse(err)
	conditional := cond.Absent || cond.ETag != ""
	if conditional && (refusal.StatusCode == http.StatusPreconditionFailed || refusal.Code == minio.NoSuchKey) {
		err = bucket.ErrCondition // what is not there is of no version
	}
	if err != nil {
		return "", fmt.Errorf("bucket: writing %s: %w", key, err)
	}
	return etag, nil
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string) (body []byte, etag string, err error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, "", err
	}
	var size int64
	err = b.do(ctx, func(ctx context.Context) error {
		r, info, _, err := b.core.GetObject(ctx, b.place.bucket, b.place.prefix+key, minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		defer r.Close()
		size, etag = info.Size, info.ETag
		if size < 0 || size > bucket.MaxObject {
			return nil // said below: it would be no other the next time
		}
		body = make([]byte, size)
		_, err = io.ReadFull(r, body)
		return err
	})
	if err == nil && (size < 0 || size > bucket.MaxObject) {
		err = fmt.Errorf("it is of %d bytes", size)
	}
	if err != nil {
		return nil, "", b.readError(key, err)
	}
	return body, etag, nil
}

// ReadAt implements bucket.Bucket.
func (b *Bucket) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if err := bucket.CheckKey(key); err != nil || len(p) == 0 {
		return err
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return b.readError(key, err)
	}
	var size int64
	err := b.do(ctx, func(ctx context.Context) error {
		r, info, _, err := b.core.GetObject(ctx, b.place.bucket, b.place.prefix+key, opts)
		if err != nil {
			return err
		}
		defer r.Close()
		if size = info.Size; size != int64(len(p)) {
			return nil // said below
		}
		_, err = io.ReadFull(r, p)
		return err
	})
	switch {
	case minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable, err == nil && size < int64(len(p)):
		err = io.ErrUnexpectedEOF
	case err == nil && size > int64(len(p)):
		err = fmt.Errorf("the service gives %d bytes for %d", size, len(p))
	}
	if err != nil {
		return b.readError(key, err)
	}
	return nil
}

// maxPage is how many objects a list gives at a time: one less than an answer
// of the service holds, so that the last one tells whether there are more.
const maxPage = 999

// List implements bucket.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, after string, limit int) (page []bucket.Object, more bool, err error) {
	if err := bucket.CheckPrefix(prefix); err != nil {
		return nil, false, err
	}
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	opts := minio.ListObjectsOptions{Prefix: b.place.prefix + prefix, Recursive: true, MaxKeys: limit + 1, FetchOwner: new(bool)}
	if after != "" {
		opts.StartAfter = b.place.prefix + after
	}
	err = b.do(ctx, func(ctx context.Context) error {
		page, more = nil, false
		for o := range b.core.ListObjectsIter(ctx, b.place.bucket, opts) {
			if o.Err != nil {
				return o.Err
			}
			key := strings.TrimPrefix(o.Key, b.place.prefix)
			if bucket.CheckKey(key) != nil {
				continue // nothing of ours
			}
			if len(page) == limit {
				more = true
				return nil
			}
			page = append(page, bucket.Object{Key: key, ETag: o.ETag, Size: o.Size})
		}
		return ctx.Err() // an iteration that was broken off looks like a short one
	})
	if err != nil {
		return nil, false, fmt.Errorf("bucket: listing %s: %w", prefix, err)
	}
	return page, more, nil
}

// Delete implements bucket.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	err := b.do(ctx, func(ctx context.Context) error {
		return b.core.RemoveObject(ctx, b.place.bucket, b.place.prefix+key, minio.RemoveObjectOptions{})
	})
	if err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchKey {
		return fmt.Errorf("bucket: deleting %s: %w", key, err)
	}
	return nil
}

func (b *Bucket) readError(key string, err error) error {
	if minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		err = bucket.ErrNotExist
	}
	return fmt.Errorf("bucket: reading %s: %w", key, err)
}

// do makes one call of the contract within the time for it.
func (b *Bucket) do(ctx context.Context, attempt func(context.Context) error) error {
	return b.doWithin(ctx, b.config.Timeout, attempt)
}

func (b *Bucket) doWithin(ctx context.Context, limit time.Duration, attempt func(context.Context) error) error {
	err := repeat(ctx, limit, attempt)
	switch refusal := minio.ToErrorResponse(err); {
	case err == nil, ctx.Err() != nil:
		return err
	case refusal.Code == minio.NoSuchBucket:
		return b.noBucket(err)
	case refusal.StatusCode == http.StatusForbidden || refusal.StatusCode == http.StatusUnauthorized:
		return fault.Wrap(fault.Invalid, err, "S3 bucket %s refuses these credentials", b.config).
			WithHint("check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may list, read, write and delete in it")
	case passing(err):
		return fault.Wrap(fault.Unavailable, err, "S3 bucket %s did not do it within %v", b.config, limit).
			WithHint("check the network and that AWS_ENDPOINT_URL_S3 is where the service answers")
	}
	return err
}
