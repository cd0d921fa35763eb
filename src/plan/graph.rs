//! Order and cycles: of blocks while they are evaluated, and of steps.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use petgraph::Direction;
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

/// How much an edge matters when not all of them can be kept: a cycle is cut at its weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strength {
    /// Spares a pause: what is taken away is still used until something else has changed.
    Graceful,
    /// What rows remember of earlier dependencies. Rows are written at different times, so
    /// together they can contradict each other.
    Remembered,
    /// Never dropped.
    Needed,
}

/// The second node waits for the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    pub(crate) first: usize,
    pub(crate) then: usize,
    pub(crate) strength: Strength,
}

/// The nodes in order, and what each waits for directly.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) sequence: Vec<usize>,
    /// By node; sorted and without duplicates.
    pub(crate) waits_for: Vec<Vec<usize>>,
}

/// Nodes that wait for each other: each for the one before it, the first for the last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cycle(pub(crate) Vec<usize>);

/// Returns an order in which every node comes after what it waits for; nodes that could stand
/// anywhere keep the order of their numbers. Takes O((V + E) log V).
///
/// # Errors
/// A cycle that holds needed edges only: the shortest through its lowest node.
pub(crate) fn order(nodes: usize, edges: impl IntoIterator<Item = Edge>) -> Result<Order, Cycle> {
    let mut graph = DiGraph::<(), Strength, usize>::default();
    for _ in 0..nodes {
        graph.add_node(());
    }
    for edge in edges {
        let (first, then) = (NodeIndex::new(edge.first), NodeIndex::new(edge.then));
        graph.add_edge(first, then, edge.strength);
    }
    loop {
        let sequence = sequence(&graph);
        if sequence.len() == nodes {
            let waits_for = (0..nodes).map(|node| waits_for(&graph, node)).collect();
            return Ok(Order {
                sequence,
                waits_for,
            });
        }
        // Each round drops one strength from every knot, so there are at most three.
        cut_weakest(&mut graph)?;
    }
}

/// Kahn's algorithm over a heap, so that the order is the same every time.
fn sequence(graph: &DiGraph<(), Strength, usize>) -> Vec<usize> {
    let incoming = |node| graph.edges_directed(node, Direction::Incoming).count();
    let mut missing: Vec<usize> = graph.node_indices().map(incoming).collect();
    let mut ready: BinaryHeap<Reverse<usize>> = (0..missing.len())
        .filter(|node| missing[*node] == 0)
        .map(Reverse)
        .collect();
    let mut sequence = Vec::with_capacity(missing.len());
    while let Some(Reverse(node)) = ready.pop() {
        sequence.push(node);
        for then in graph.neighbors(NodeIndex::new(node)) {
            missing[then.index()] -= 1;
            if missing[then.index()] == 0 {
                ready.push(Reverse(then.index()));
            }
        }
    }
    sequence
}

fn waits_for(graph: &DiGraph<(), Strength, usize>, node: usize) -> Vec<usize> {
    let before = graph.neighbors_directed(NodeIndex::new(node), Direction::Incoming);
    let mut before: Vec<usize> = before.map(NodeIndex::index).collect();
    before.sort_unstable();
    before.dedup();
    before
}

/// Drops the weakest edges inside every knot of nodes that wait for each other.
fn cut_weakest(graph: &mut DiGraph<(), Strength, usize>) -> Result<(), Cycle> {
    let mut knot_of = vec![usize::MAX; graph.node_count()];
    let knots = tarjan_scc(&*graph);
    for (knot, nodes) in knots.iter().enumerate() {
        for node in nodes {
            knot_of[node.index()] = knot;
        }
    }
    let inside = |first: NodeIndex<usize>, then: NodeIndex<usize>| {
        knot_of[first.index()] == knot_of[then.index()]
    };
    let mut weakest = vec![None; knots.len()];
    for edge in graph
        .edge_references()
        .filter(|it| inside(it.source(), it.target()))
    {
        let weakest: &mut Option<Strength> = &mut weakest[knot_of[edge.source().index()]];
        *weakest = Some(weakest.map_or(*edge.weight(), |it| it.min(*edge.weight())));
    }
    let needed = |knot: &usize| weakest[*knot] == Some(Strength::Needed);
    let lowest = |knot: usize| knots[knot].iter().map(|node| node.index()).min();
    let hard = (0..knots.len()).filter(needed).filter_map(lowest).min();
    if let Some(node) = hard {
        return Err(shortest_cycle(graph, NodeIndex::new(node)));
    }
    graph.retain_edges(|graph, edge| {
        let (Some((first, then)), Some(strength)) =
            (graph.edge_endpoints(edge), graph.edge_weight(edge))
        else {
            return true;
        };
        !inside(first, then) || weakest[knot_of[first.index()]] != Some(*strength)
    });
    Ok(())
}

/// Breadth first from a node that is on a cycle, back to itself.
fn shortest_cycle(graph: &DiGraph<(), Strength, usize>, start: NodeIndex<usize>) -> Cycle {
    let mut came_from = vec![None; graph.node_count()];
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for then in graph.neighbors(node) {
            if then == start {
                let mut path = vec![node.index()];
                let mut at = node;
                while at != start {
                    let Some(before) = came_from[at.index()] else {
                        break;
                    };
                    path.push(NodeIndex::index(before));
                    at = before;
                }
                path.reverse();
                return Cycle(path);
            }
            if came_from[then.index()].is_none() {
                came_from[then.index()] = Some(node);
                queue.push_back(then);
            }
        }
    }
    Cycle(vec![start.index()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn edge(first: usize, then: usize, strength: Strength) -> Edge {
        Edge {
            first,
            then,
            strength,
        }
    }

    #[test]
    fn what_could_stand_anywhere_keeps_its_place() {
        let order = order(4, [edge(3, 0, Strength::Needed)]).expect("no cycle");
        assert_eq!(order.sequence, [1, 2, 3, 0]);
        assert_eq!(order.waits_for[0], [3]);
    }

    #[test]
    fn a_cycle_is_cut_at_its_weakest_edge() {
        let edges = [
            edge(0, 1, Strength::Needed),
            edge(1, 2, Strength::Remembered),
            edge(2, 0, Strength::Graceful),
        ];
        assert_eq!(order(3, edges).expect("cut").sequence, [0, 1, 2]);
    }

    #[test]
    fn a_cycle_of_needed_edges_is_told_from_its_lowest_node() {
        let edges = [(2, 1), (1, 3), (3, 2), (0, 1)].map(|(a, b)| edge(a, b, Strength::Needed));
        assert_eq!(order(4, edges).expect_err("a cycle"), Cycle(vec![1, 3, 2]));
        let own = [edge(0, 0, Strength::Needed)];
        assert_eq!(order(1, own).expect_err("a cycle"), Cycle(vec![0]));
    }

    proptest! {
        #[test]
        fn everything_is_ordered_or_a_needed_cycle_is_named(
            edges in prop::collection::vec((0usize..12, 0usize..12, 0u8..3), 0..40)
        ) {
            let edges: Vec<Edge> = edges
                .into_iter()
                .map(|(first, then, strength)| edge(first, then, match strength {
                    0 => Strength::Graceful,
                    1 => Strength::Remembered,
                    _ => Strength::Needed,
                }))
                .collect();
            let needed = |first, then| edges.iter().any(|edge| {
                (edge.first, edge.then, edge.strength) == (first, then, Strength::Needed)
            });
            match order(12, edges.iter().copied()) {
                Ok(order) => {
                    let mut place = [0; 12];
                    for (at, node) in order.sequence.iter().enumerate() {
                        place[*node] = at;
                    }
                    prop_assert_eq!(order.sequence.len(), 12);
                    for edge in edges.iter().filter(|edge| edge.strength == Strength::Needed) {
                        prop_assert!(place[edge.first] < place[edge.then]);
                    }
                }
                Err(Cycle(path)) => {
                    for (at, node) in path.iter().enumerate() {
                        prop_assert!(needed(*node, path[(at + 1) % path.len()]));
                    }
                }
            }
        }
    }
}
