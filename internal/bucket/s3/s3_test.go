// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/bucket/s3"
	"github.com/opencomputer/oc/internal/fault"
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

// Open says what is wrong and what to do.
func TestOpenFaults(t *testing.T) {
	t.Parallel()
	server := buckettest.StartS3(t)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	l.Close()
	for name, c := range map[string]struct {
		change func(*s3.Config)
		kind   fault.Kind
		says   string
	}{
		"no bucket":  {func(c *s3.Config) { c.URL = "s3://not-there" }, fault.Invalid, "s3://not-there"},
		"wrong key":  {func(c *s3.Config) { c.SecretKey = "wrong" }, fault.Invalid, "credentials"},
		"no service": {func(c *s3.Config) { c.Endpoint, c.Timeout = nobody, time.Second }, fault.Unavailable, nobody},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := server.Config()
			c.change(&config)
			_, err := s3.Open(t.Context(), config)
			if f := fault.As(err); f.Kind != c.kind || f.Hint == "" || !strings.Contains(f.Message, c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}
