# Two experiments from the same state, with the alias as well.
oc checkpoint create $SANDBOX --name my-checkpoint
oc checkpoint list $SANDBOX
CP=$(oc cp list $SANDBOX --json | jq -r '.[0].id')
OLD=$(oc cp list $SANDBOX --json | jq -r '.[1].id')

ID1=$(oc checkpoint spawn $CP --json | jq -r '.id')
ID2=$(oc checkpoint spawn $CP --json | jq -r '.sandboxID')
echo "fork $ID1"
echo "fork $ID2"

oc exec $ID1 -- ./experiment-a.sh
oc exec $ID2 -- ./experiment-b.sh
oc exec $ID1 -- cat result.txt
oc exec $ID2 -- cat result.txt

OUT=$(oc cp spawn $CP --timeout 300)
echo "$OUT"
oc kill $(echo "$OUT" | grep -o 'sb-[0-9a-f]*')

oc checkpoint delete $SANDBOX $CP
oc cp delete $SANDBOX $OLD
oc checkpoint list $SANDBOX
