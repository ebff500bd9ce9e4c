// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/fault"
)

// Config says which bucket it is and how to get there. What is empty comes from
// the standard AWS environment. As JSON it goes to other processes, secrets
// included; printed or logged it shows none.
type Config struct {
	URL      string `json:"url"`                // s3://bucket or s3://bucket/prefix
	Endpoint string `json:"endpoint,omitempty"` // http:// or https://; empty: $AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL, Amazon
	Region   string `json:"region,omitempty"`   // empty: $AWS_REGION, $AWS_DEFAULT_REGION, the bucket's own (us-east-1 at an Endpoint)
	Profile  string `json:"profile,omitempty"`  // of the shared credentials file; empty: the keys, or $AWS_PROFILE

	AccessKey    string `json:"access_key,omitempty"`    // empty: $AWS_ACCESS_KEY_ID, the file, the instance
	SecretKey    string `json:"secret_key,omitempty"`    // $AWS_SECRET_ACCESS_KEY
	SessionToken string `json:"session_token,omitempty"` // $AWS_SESSION_TOKEN

	// Timeout bounds each call, repetitions included; 0 is a minute.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// String shows the configuration without its secrets.
func (c Config) String() string {
	s := c.URL
	if c.Endpoint != "" {
		s += " at " + c.Endpoint
	}
	if c.Region != "" {
		s += " in " + c.Region
	}
	return s
}

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

const (
	defaultTimeout = time.Minute
	localRegion    = "us-east-1" // what services that have no regions expect
	// instanceWait bounds a question to the machine's own metadata service, which
	// many machines do not have.
	instanceWait = 5 * time.Second
)

// Resolve fills in what the environment says, so that another process needs
// none. Credentials that expire are left to be found by whoever uses them. It
// fails with a fault that says what to set.
func (c Config) Resolve(ctx context.Context) (Config, error) { return c.resolve(ctx, os.Getenv) }

func (c Config) resolve(ctx context.Context, env func(string) string) (Config, error) {
	c.Endpoint = cmp.Or(c.Endpoint, env("AWS_ENDPOINT_URL_S3"), env("AWS_ENDPOINT_URL"))
	c.Region = cmp.Or(c.Region, env("AWS_REGION"), env("AWS_DEFAULT_REGION"))
	if c.Region == "" && c.Endpoint != "" {
		c.Region = localRegion
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if _, err := c.parse(); err != nil {
		return Config{}, err
	}
	if c.AccessKey == "" && c.Profile == "" {
		c.AccessKey, c.SecretKey, c.SessionToken = env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY"), env("AWS_SESSION_TOKEN")
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		return Config{}, fault.New(fault.Invalid, "%s: an access key needs its secret key", c).
			WithHint("set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither")
	}
	if c.AccessKey != "" {
		return c, nil
	}
	v, err := c.credentials().GetWithContext(&credentials.CredContext{Client: &http.Client{Timeout: instanceWait}, Context: ctx})
	if err != nil || v.AccessKeyID == "" {
		return Config{}, fault.Wrap(fault.Invalid, err, "no credentials for %s", c).
			WithHint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of the shared credentials file in AWS_PROFILE")
	}
	if v.Expiration.IsZero() {
		c.AccessKey, c.SecretKey, c.SessionToken = v.AccessKeyID, v.SecretAccessKey, v.SessionToken
	}
	return c, nil
}

// credentials gives what signs the requests: keys, or where they are found anew
// before they expire.
func (c Config) credentials() *credentials.Credentials {
	if c.AccessKey != "" {
		return credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken)
	}
	file := &credentials.FileAWSCredentials{Profile: c.Profile}
	if c.Profile != "" || os.Getenv("AWS_EC2_METADATA_DISABLED") == "true" {
		return credentials.New(file)
	}
	return credentials.NewChainCredentials([]credentials.Provider{file, &credentials.IAM{}})
}

// place is where a bucket is.
type place struct {
	bucket, prefix string // prefix is "" or ends with '/'
	host           string
	secure         bool
	own            bool // not Amazon's
}

// parse takes the URL and the endpoint apart.
func (c Config) parse() (place, error) {
	rest, ok := strings.CutPrefix(c.URL, "s3://")
	name, prefix, _ := strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	if !ok || name == "" || strings.ContainsAny(name, "?#@:") || prefix != "" && bucket.CheckKey(prefix) != nil {
		return place{}, fault.New(fault.Invalid, "%q is not the URL of an S3 bucket", c.URL).
			WithHint("write it as s3://bucket or s3://bucket/prefix")
	}
	p := place{bucket: name, host: "s3.amazonaws.com", secure: true}
	if prefix != "" {
		p.prefix = prefix + "/"
	}
	if c.Endpoint == "" {
		return p, nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return place{}, fault.New(fault.Invalid, "the S3 endpoint for %s is not an http:// or https:// URL of a host", c.URL).
			WithHint("set AWS_ENDPOINT_URL_S3 to something like https://s3.example.com or http://127.0.0.1:9000")
	}
	p.host, p.secure = u.Host, u.Scheme == "https"
	p.own = !strings.HasSuffix(u.Hostname(), ".amazonaws.com")
	return p, nil
}
