//! From declarations to values.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{Address, Diagnostic, Instance, Name, ProviderSchema, Value};

use super::config::{BindingValues, Config, Expansion, MachineValues};
use super::inputs::Inputs;

/// What is known of each provider, by its name.
pub type Schemas = BTreeMap<String, ProviderSchema>;

/// Evaluates declarations, each when what it refers to has been set.
pub struct Evaluator<'a> {
    config: &'a Config,
    inputs: &'a Inputs,
    schemas: &'a Schemas,
    objects: std::collections::HashMap<Address, Value>,
}

impl<'a> Evaluator<'a> {
    /// Returns an evaluator.
    ///
    /// # Errors
    /// When a variable has no value, a wrong one, or one that its validation refuses.
    pub fn new(
        config: &'a Config,
        inputs: &'a Inputs,
        schemas: &'a Schemas,
    ) -> Result<Self, Vec<Diagnostic>> {
        Ok(Self {
            config,
            inputs,
            schemas,
            objects: std::collections::HashMap::new(),
        })
    }

    /// Returns what should be looked at, though nothing stops for it.
    pub fn warnings(&self) -> &[Diagnostic] {
        &[]
    }

    /// Sets what a reference to a machine's or binding's instance shows: the planned value with
    /// its unknowns, at apply the real one.
    pub fn set_object(&mut self, address: Address, value: Value) {
        self.objects.insert(address, value);
    }

    /// Returns the instances of a machine block.
    ///
    /// # Errors
    /// When `count` or `for_each` is wrong or not known yet.
    pub fn expand_machine(&self, name: &Name) -> Result<Arc<Expansion>, Vec<Diagnostic>> {
        let _ = name;
        Err(Vec::new())
    }

    /// Returns the instances of a binding block.
    ///
    /// # Errors
    /// As [`Evaluator::expand_machine`].
    pub fn expand_binding(&self, name: &Name) -> Result<Arc<Expansion>, Vec<Diagnostic>> {
        let _ = name;
        Err(Vec::new())
    }

    /// Returns what an instance of a machine is to be.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn machine(&self, instance: &Instance) -> Result<MachineValues, Vec<Diagnostic>> {
        let _ = (instance, self.config, self.inputs, self.schemas);
        Err(Vec::new())
    }

    /// Returns what an instance of a binding is to be.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn binding(&self, instance: &Instance) -> Result<BindingValues, Vec<Diagnostic>> {
        let _ = instance;
        Err(Vec::new())
    }

    /// Returns an output's value.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn output(&self, name: &Name) -> Result<Value, Vec<Diagnostic>> {
        let _ = name;
        Err(Vec::new())
    }

    /// Returns the settings of a provider: an object, complete by its schema.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn provider_settings(&self, provider: &str) -> Result<Value, Vec<Diagnostic>> {
        let _ = provider;
        Err(Vec::new())
    }

    /// Returns a variable's value.
    pub fn variable(&self, name: &Name) -> Option<&Value> {
        let _ = name;
        None
    }
}
