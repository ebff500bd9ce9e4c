// SPDX-License-Identifier: Apache-2.0

package engine

import "testing"

// A record that can be read is stored again as what it was.
func FuzzDecodeProcess(f *testing.F) {
	f.Add(Process{Generation: "gn-1", Build: "b", Engine: "e", Dir: "/run/x", PID: 5, StartTime: 6, GoferPID: 7}.Encode())
	f.Add([]byte(`{"pid":-1,"startTime":18446744073709551615,"later":[{}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodeProcess(b)
		if err != nil {
			return
		}
		if again, err := DecodeProcess(p.Encode()); err != nil || again != p {
			t.Errorf("%+v becomes %+v, %v", p, again, err)
		}
	})
}
