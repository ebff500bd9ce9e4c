// SPDX-License-Identifier: Apache-2.0

package asked

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestAsk(t *testing.T) {
	t.Parallel()
	address := fmt.Sprintf("@oc-asked-test-%d", os.Getpid())
	go func() {
		_ = Serve(address, func(words []string) (string, error) { // ends with the test
			if words[0] == "fail" {
				return "", errors.New("it failed")
			}
			return strings.Join(words, "+"), nil
		})
	}()
	if line, err := Ask(address, "a  b"); line != "a+b\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	if line, err := Ask(address, "fail"); line != "" || err == nil || err.Error() != "it failed" {
		t.Errorf("%q, %v", line, err)
	}
}
