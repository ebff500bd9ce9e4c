// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/opencomputer/oc/internal/engine"
)

// The names of fields are the protocol: a helper of an older or newer build
// must find what it knows where it was. Lines are only ever added here.
func TestVersion1OnTheWire(t *testing.T) {
	t.Parallel()
	p := engine.Process{Generation: "gn-1", Build: "b", Engine: "e", Dir: "/run/x", PID: 5, StartTime: 6, GoferPID: 7}
	for _, tt := range []struct {
		value any
		want  string
	}{
		{
			Request{
				Version: 1, Verb: VerbPrepare, Start: true, Targets: []Target{{Generation: "gn-1", Dir: "/run/x", PID: 5, StartTime: 6}},
				Prepare: &PrepareExtra{
					Hostname: "sb-1", ImagePath: "/i", DiskDir: "/d", CgroupProcs: []string{"/c"},
					Shape: engine.Shape{CPUs: 1, MemoryBytes: 2, DiskBytes: 3, PidsMax: 4},
				},
			},
			`{"version":1,"verb":"prepare","targets":[{"generation":"gn-1","dir":"/run/x","pid":5,"startTime":6}],"start":true,` +
				`"prepare":{"hostname":"sb-1","imagePath":"/i","diskDir":"/d","shape":{"cpus":1,"memoryBytes":2,"diskBytes":3,"pidsMax":4},"cgroupProcs":["/c"]}}`,
		},
		{
			Request{Version: 1, Verb: VerbRestore, Targets: []Target{{Generation: "gn-1", Dir: "/run/x"}}, Image: "/cp", Rate: 8},
			`{"version":1,"verb":"restore","targets":[{"generation":"gn-1","dir":"/run/x"}],"image":"/cp","rate":8}`,
		},
		{Command{ID: 1, Do: VerbPause, Target: 2}, `{"id":1,"do":"pause","target":2}`},
		{Event{Event: EventLost, Target: 3, Error: "x"}, `{"event":"lost","target":3,"error":"x"}`},
		{Event{Event: EventDone, Command: 4}, `{"event":"done","command":4}`},
		{
			Event{Event: EventDone, Process: p},
			`{"event":"done","process":{"generation":"gn-1","build":"b","engine":"e","dir":"/run/x","pid":5,"startTime":6,"goferPid":7}}`,
		},
		{
			Event{Event: EventDone, Sizes: Sizes{State: 1, Meta: 2, Pages: 3, Ranges: 4, PauseNS: 5}},
			`{"event":"done","sizes":{"State":1,"Meta":2,"Pages":3,"Ranges":4,"PauseNS":5}}`,
		},
		{
			Request{Version: 1, Verb: VerbCapture, Targets: []Target{{Generation: "gn-1", Dir: "/run/x"}}, Base: true, Expect: 5},
			`{"version":1,"verb":"capture","targets":[{"generation":"gn-1","dir":"/run/x"}],"base":true,"expect":5}`,
		},
		{
			Request{Version: 1, Verb: VerbCapture, Targets: []Target{{Generation: "gn-1", Dir: "/run/x"}}, HoldMS: 7, Ask: true},
			`{"version":1,"verb":"capture","targets":[{"generation":"gn-1","dir":"/run/x"}],"holdMs":7,"ask":true}`,
		},
		{Event{Event: EventReady}, `{"event":"ready"}`},
		{Command{Do: Freeze}, `{"id":0,"do":"freeze","target":0}`},
		{Event{Event: EventDone, Sizes: Sizes{Copied: 6}}, `{"event":"done","sizes":{"State":0,"Meta":0,"Pages":0,"Ranges":0,"PauseNS":0,"Copied":6}}`},
	} {
		b, err := json.Marshal(tt.value)
		if err != nil || string(b) != tt.want {
			t.Errorf("%s, %v\nwant %s", b, err, tt.want)
		}
		back := reflect.New(reflect.TypeOf(tt.value))
		if err := json.Unmarshal([]byte(tt.want), back.Interface()); err != nil || !reflect.DeepEqual(back.Elem().Interface(), tt.value) {
			t.Errorf("read back as %+v, %v", back.Elem().Interface(), err)
		}
	}
}

// What a newer server adds is passed over.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	var r Request
	if err := json.Unmarshal([]byte(`{"version":1,"verb":"pause","later":{"x":[1]},"targets":[{"generation":"g","new":1}]}`), &r); err != nil || r.Targets[0].Generation != "g" {
		t.Errorf("%+v, %v", r, err)
	}
}
