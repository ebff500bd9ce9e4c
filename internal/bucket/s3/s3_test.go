// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/bucket/s3"
)

func open(t testing.TB, config s3.Config) *s3.Bucket {
	t.Helper()
	b, err := s3.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func TestConformance(t *testing.T) {
	t.Parallel()
	config := buckettest.StartS3(t).Config()
	url := config.URL
	var n atomic.Int64
	buckettest.Conformance(t, func(t *testing.T) bucket.Bucket {
		config := config
		config.URL = fmt.Sprintf("%s/tests/%d", url, n.Add(1))
		return open(t, config)
	})
}
