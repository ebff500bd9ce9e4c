// SPDX-License-Identifier: Apache-2.0

// Package bucket is the seam between the page store and where its objects are:
// a directory (package dir) or an S3 bucket (package s3).
//
// It asks for no more than what directories and all S3 services share: whole
// objects of moderate size, conditional writes, ranged reads, an ascending
// list, and that what was written is read by whoever asks afterwards. It knows
// nothing of what the objects mean.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Bounds, in bytes.
const (
	MaxObject  = 64 << 20 // of an object: one PUT carries it
	MaxKey     = 512      // of a key
	MaxElement = 128      // of an element of a key
)

var (
	// ErrNotExist says that there is no such object.
	ErrNotExist = errors.New("bucket: no such object")
	// ErrCondition says that the condition of a Put did not hold; nothing was
	// written by it. After a lost answer a client library may have repeated a Put
	// that had been carried out: then the object may be the caller's own.
	ErrCondition = errors.New("bucket: the condition of the write does not hold")
)

// Condition is what must hold for a Put. The zero value is none.
type Condition struct {
	Absent bool   // there is no such object (If-None-Match: *)
	ETag   string // the object is this version of it (If-Match)
	// Volatile says that the object need not survive a power cut.
	Volatile bool
}

// Object is an entry of a list.
type Object struct {
	Key  string
	ETag string
	Size int64
}

// Bucket keeps objects. Keys are as CheckKey wants them, and no key is a
// directory of another one.
//
// Every error other than ErrNotExist and ErrCondition leaves open whether the
// call had an effect. A Bucket may be used by many goroutines and processes.
type Bucket interface {
	// Put stores an object, durably unless it is volatile, and gives the version
	// that it made. It is visible as a whole or not at all.
	Put(ctx context.Context, key string, body []byte, cond Condition) (etag string, err error)
	// Get gives a whole object and its version, or an earlier version than its own
	// (versitygw 1.8 looks that up before it opens the file), never a later one: a
	// Put on condition of it replaces nothing but this content. It fails for an
	// object larger than MaxObject.
	Get(ctx context.Context, key string) (body []byte, etag string, err error)
	// ReadAt fills p from an offset of the object; less than len(p) bytes are an
	// error (io.ErrUnexpectedEOF when the object ends).
	ReadAt(ctx context.Context, key string, p []byte, off int64) error
	// List gives the objects whose key begins with prefix and is greater than
	// after, in ascending order of bytes, at most limit (0, and at most: as many
	// as the implementation gives at a time). more tells that there may be
	// others.
	List(ctx context.Context, prefix, after string, limit int) (page []Object, more bool, err error)
	// Delete removes an object; a missing one is no error.
	Delete(ctx context.Context, key string) error
}

// Excluder is a Bucket whose List is not ordered in time (a directory): a sweep
// holds Exclude instead, and no conditional Put takes effect meanwhile.
type Excluder interface {
	// Exclude waits until it alone may write conditionally. The lock ends with
	// release or with the process. The holder's own Puts go on.
	Exclude(ctx context.Context) (release func(), err error)
}

// Spacer is a Bucket that knows how much room it has left.
type Spacer interface {
	// Free gives the number of bytes.
	Free() (int64, error)
}

// CheckKey tells whether a key is one: an ASCII path of elements of letters,
// digits, '.', '_' and '-', none of them beginning with '.', divided by '/',
// within MaxKey and MaxElement.
func CheckKey(key string) error {
	if len(key) > MaxKey {
		return fmt.Errorf("bucket: a key of %d bytes", len(key))
	}
	for element := range strings.SplitSeq(key, "/") {
		if element == "" || element[0] == '.' || len(element) > MaxElement || strings.ContainsFunc(element, odd) {
			return fmt.Errorf("bucket: %q is not a key", key)
		}
	}
	return nil
}

// CheckPrefix tells whether keys can begin with the prefix.
func CheckPrefix(prefix string) error {
	if prefix == "" || CheckKey(prefix) == nil || CheckKey(strings.TrimSuffix(prefix, "/")) == nil {
		return nil
	}
	return fmt.Errorf("bucket: no key begins with %q", prefix)
}

// CheckPut tells whether a Put is one that a bucket can carry out.
func CheckPut(key string, body []byte, cond Condition) error {
	switch {
	case len(body) > MaxObject:
		return fmt.Errorf("bucket: %s: an object of %d bytes", key, len(body))
	case cond.Absent && cond.ETag != "":
		return fmt.Errorf("bucket: %s: a condition that cannot hold", key)
	}
	return CheckKey(key)
}

// odd tells whether a character cannot be in a key's element.
func odd(c rune) bool {
	return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune("._-", c)
}
