# fish completion for flanneld-masq

set -l commands run plan apply status wait check render explain backends selftest doctor trace probe report monitor metrics cleanup
set -l data plan apply status wait check render explain backends selftest doctor trace probe report monitor cleanup

complete -c flanneld-masq -f
complete -c flanneld-masq -s h -l help -d 'Show help'
complete -c flanneld-masq -l config -r -F -d 'Configuration file'
complete -c flanneld-masq -l backend -x -a 'auto nft iptables-nft iptables-legacy' -d 'Use this backend'
complete -c flanneld-masq -l subnet-file -r -F -d 'Read this subnet file'

complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -l version -d 'Show the version'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a run -d 'Run the daemon in the foreground'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a plan -d 'Show what a reconcile would change'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a apply -d 'Reconcile once'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a status -d 'Show the state of the daemon and the rules'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a wait -d 'Wait until the daemon reports a state'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a check -d 'Validate the configuration'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a render -d 'Print the ruleset for a backend'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a explain -d 'Show which rule decides a packet'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a backends -d 'List every backend, usable or not and why'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a selftest -d 'Test the backends on this kernel'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a doctor -d 'Check the node for faults that break pods'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a trace -d 'Follow real packets of a flow'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a probe -d 'Send packets from a throwaway pod'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a report -d 'Write an archive for a bug report'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a monitor -d 'Print repairs and changes of state live'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a metrics -d 'Print the metrics for Prometheus'
complete -c flanneld-masq -n "not __fish_seen_subcommand_from $commands" -a cleanup -d 'Remove the rules of flanneld-masq'

complete -c flanneld-masq -n "__fish_seen_subcommand_from $data" -l json -d 'Print JSON'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain trace' -l src -x -d 'Source address'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain trace' -l dst -x -d 'Destination address'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain trace' -l proto -x -a 'tcp udp sctp icmp icmpv6' -d 'Protocol'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain trace' -l dport -x -d 'Destination port'
complete -c flanneld-masq -n '__fish_seen_subcommand_from trace' -l seconds -x -d 'How long to wait'
complete -c flanneld-masq -n '__fish_seen_subcommand_from trace' -l packets -x -d 'End after so many packets'
complete -c flanneld-masq -n '__fish_seen_subcommand_from probe' -l dst -x -a 'world remote-pod node pod' -d 'Class'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain' -l mark -x -d 'Mark of the packet'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain' -l from -x -a '(__fish_print_interfaces)' -d 'Interface'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain' -l ours -d 'Answer by the policy alone'
complete -c flanneld-masq -n '__fish_seen_subcommand_from doctor' -l snapshot -r -F -d 'Examine a saved node'
complete -c flanneld-masq -n '__fish_seen_subcommand_from doctor' -l brief -d 'One line for node-problem-detector'
complete -c flanneld-masq -n '__fish_seen_subcommand_from explain' -l html -r -F -d 'Also write a page'
complete -c flanneld-masq -n '__fish_seen_subcommand_from report' -F
complete -c flanneld-masq -n '__fish_seen_subcommand_from status' -l check -d 'Exit status 0 healthy, 1 not, 2 not running'
complete -c flanneld-masq -n '__fish_seen_subcommand_from wait' -l for -x -a 'synced waiting degraded contended stopped' -d 'State'
complete -c flanneld-masq -n '__fish_seen_subcommand_from wait doctor' -l timeout -x -d 'Give up after so many seconds'
complete -c flanneld-masq -n '__fish_seen_subcommand_from check' -F
complete -c flanneld-masq -n '__fish_seen_subcommand_from status' -l watch -d 'Show it again whenever it changes'
complete -c flanneld-masq -n '__fish_seen_subcommand_from metrics' -l write -d 'Write metrics.textfile if no daemon runs'
complete -c flanneld-masq -n '__fish_seen_subcommand_from cleanup' -l flannel -d 'Also remove the rules that flannel left'
