// Package s3 stub.
package s3

import (
	"context"
	"errors"

	"github.com/opencomputer/oc/internal/bucket"
)

// Config stub.
type Config struct {
	URL      string `json:"url"`
	Endpoint string `json:"endpoint,omitempty"`
	Region   string `json:"region,omitempty"`
	Profile  string `json:"profile,omitempty"`
}

// Open stub.
func Open(context.Context, Config) (bucket.Bucket, error) { return nil, errors.New("stub") }
