# Try something risky, and go back.
oc checkpoint create $SANDBOX --name before-migration
CP=$(oc checkpoint list $SANDBOX --json | jq -r '.[0].id')

oc exec $SANDBOX -- ./run-migration.sh || oc checkpoint restore $SANDBOX $CP

oc exec $SANDBOX -- cat data.txt state/schema
